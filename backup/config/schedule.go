package config

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/neozodb/neo/cluster/conf"
	"github.com/neozodb/neo/cluster/following"
)

// jobs are the commands that a schedule may have, and their options.
var jobs = map[string][]string{
	"snapshot":     {"label"},
	"check":        {"store"},
	"verify":       {"read-data", "against"},
	"drill":        {"mode", "keep", "no-source"},
	"prune":        {"confirm", "force-share"},
	"extend_locks": nil,
}

var scheduleKeys = []string{"follow", "snapshot", "check", "verify", "drill", "prune", "extend_locks"}

func (r *reader) schedule(s *conf.Section, header string, repo *Repository) error {
	sch := &Schedule{}
	repo.Schedule = sch
	err := r.each(s, header, scheduleKeys, func(key string, v value) error {
		text, err := v.one()
		if err != nil {
			return err
		}
		if key == "follow" {
			sch.Follow, err = conf.ParseBool(text)
			return err
		}
		j, err := parseJob(key, text)
		j.Line = s.KeyLine(key)
		sch.Jobs = append(sch.Jobs, j)
		return err
	})
	if err != nil {
		return err
	}
	if i := slices.IndexFunc(sch.Jobs, func(j Job) bool { return j.Command == "snapshot" }); i >= 0 && sch.Follow {
		return r.errorf(sch.Jobs[i].Line, "snapshot: with follow there is nothing left to take: keep one of both")
	}
	return nil
}

// parseJob reads the times of cron, and the options behind them.
func parseJob(key, text string) (Job, error) {
	j := Job{Command: strings.ReplaceAll(key, "_", "-")}
	fields := strings.Fields(text)
	n := 5
	if strings.HasPrefix(fields[0], "@") {
		n = 1
	}
	if i := slices.IndexFunc(fields, func(f string) bool { return strings.HasPrefix(f, "--") }); i >= 0 && i < n || len(fields) < n {
		return j, fmt.Errorf("%q: want minute, hour, day of the month, month and day of the week, such as 0 2 * * *, or @daily", text)
	}
	times := slices.Clone(fields[:n])
	if n == 5 {
		times[4] = sunday(times[4])
	}
	var err error
	if j.Times, err = following.ParseSchedule(strings.Join(times, " ")); err != nil {
		return j, err
	}
	for _, f := range fields[n:] {
		name, ok := strings.CutPrefix(f, "--")
		name, _, _ = strings.Cut(name, "=")
		if !ok || name == "" {
			return j, fmt.Errorf("%q behind the times is no option: want --name or --name=value", f)
		}
		if !slices.Contains(jobs[key], name) {
			var known []string
			for _, o := range jobs[key] {
				known = append(known, "--"+o)
			}
			if len(known) == 0 {
				return j, fmt.Errorf("%s has no option %q", j.Command, f)
			}
			return j, fmt.Errorf("%s has no option --%s: want %s%s", j.Command, name, strings.Join(known, ", "), conf.DidYouMean("--"+name, known))
		}
		if slices.ContainsFunc(j.Options, func(o string) bool { return o == "--"+name || strings.HasPrefix(o, "--"+name+"=") }) {
			return j, errors.New("option --" + name + " twice")
		}
		j.Options = append(j.Options, f)
	}
	return j, nil
}

// sunday replaces 7, which cron takes for Sunday too, in a list of weekdays.
func sunday(field string) string {
	list := strings.Split(field, ",")
	for i, item := range list {
		if item == "7" {
			list[i] = "0"
		}
	}
	return strings.Join(list, ",")
}
