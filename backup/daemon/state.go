package daemon

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// Status is what a daemon has noted of a repository. It may be lost at any time.
type Status struct {
	V          int                `json:"v"` // 1
	Repository string             `json:"repository"`
	Host       string             `json:"host"`
	Seen       time.Time          `json:"seen"`    // the daemon ran then, and at the time of the file if that is later
	Stopped    bool               `json:"stopped"` // and ended in order
	Jobs       map[string]*JobRun `json:"jobs,omitempty"`
	Alarms     map[string]*Alarm  `json:"alarms,omitempty"`
}

// JobRun is what is known of the runs of a job.
type JobRun struct {
	From    time.Time `json:"from,omitzero"` // what the next one is planned after
	Last    time.Time `json:"last,omitzero"` // when the last one that ended began; zero: there was none
	Exit    int       `json:"exit"`          // how it ended
	Text    string    `json:"text,omitempty"`
	Good    time.Time `json:"good,omitzero"`    // when the last one that succeeded began
	Started time.Time `json:"started,omitzero"` // the one that has not ended
	Tries   int       `json:"tries,omitempty"`  // how often that was begun
	// Clean is how many runs without damage there were since one with: as many as read all end the alarm.
	Clean int `json:"clean,omitempty"`
}

// seenEvery is the time between two notes that the daemon runs.
const seenEvery = time.Minute

// Runs reports whether the daemon is running, as far as its notes tell.
func (s *Status) Runs(now time.Time) bool {
	age := now.Sub(s.Seen)
	return !s.Stopped && age < 3*seenEvery && age > -3*seenEvery
}

// ReadStatus reads what a daemon has noted; the error is an fs.ErrNotExist if none has.
func ReadStatus(path string) (*Status, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	s := &Status{}
	if err := json.Unmarshal(b, s); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if s.V != 1 {
		return nil, fmt.Errorf("%s has version %d, this program knows 1", path, s.V)
	}
	if at := info.ModTime().UTC(); at.After(s.Seen) {
		s.Seen = at
	}
	for key, a := range s.Alarms {
		if a == nil {
			delete(s.Alarms, key)
		}
	}
	for key, j := range s.Jobs {
		if j == nil {
			delete(s.Jobs, key)
		}
	}
	return s, nil
}

// write writes the notes whole and durably, or not at all.
func (s *Status) write(path string) error {
	b, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-")
	if err != nil {
		return err
	}
	_, err = f.Write(append(b, '\n'))
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		if e := os.Remove(f.Name()); !errors.Is(e, fs.ErrNotExist) {
			err = errors.Join(err, e)
		}
	}
	return err
}
