package page

import (
	"fmt"
	"math"
	"slices"
	"strings"
)

// point is a rate, at least 0, or NaN if it was not known.
type point = float64

// ring has the last points.
type ring struct {
	list []point
	next int
}

func newRing(n int) ring { return ring{list: make([]point, 0, n)} }

func (r *ring) add(v *float64) {
	p := math.NaN()
	if v != nil {
		p = max(0, *v)
	}
	if len(r.list) < cap(r.list) {
		r.list = append(r.list, p)
		return
	}
	r.list[r.next] = p
	r.next = (r.next + 1) % len(r.list)
}

// points returns the points, the oldest first.
func (r *ring) points() []point {
	return slices.Concat(r.list[r.next:], r.list[:r.next])
}

// chart is a line of points, as SVG draws it.
type chart struct {
	Width, Height int
	Line          string // path of the line
	Area          string // path of what is below it
	Max           float64
}

const chartWidth, chartHeight = 240, 40

// newChart draws points, nil if there are too few to see anything. What is not known
// is left out.
func newChart(points []point) *chart {
	c := &chart{Width: chartWidth, Height: chartHeight}
	known := 0
	for _, p := range points {
		if !math.IsNaN(p) {
			c.Max = max(c.Max, p)
			known++
		}
	}
	if known < 2 {
		return nil
	}
	// A short past does not fill the width at once, but soon.
	span := float64(max(len(points), samples/6) - 1)
	var line, area strings.Builder
	start, last := -1.0, 0.0
	end := func() {
		if start >= 0 {
			fmt.Fprintf(&area, "L%.1f %d L%.1f %d Z ", last, chartHeight, start, chartHeight)
		}
		start = -1
	}
	for i, p := range points {
		if math.IsNaN(p) {
			end()
			continue
		}
		x, y := chartWidth-float64(len(points)-1-i)*chartWidth/span, chartHeight-1.0
		if c.Max > 0 {
			y -= p / c.Max * (chartHeight - 3)
		}
		command := "L"
		if start < 0 {
			command, start = "M", x
		}
		fmt.Fprintf(&line, "%s%.1f %.1f ", command, x, y)
		fmt.Fprintf(&area, "%s%.1f %.1f ", command, x, y)
		last = x
	}
	end()
	c.Line, c.Area = strings.TrimSpace(line.String()), strings.TrimSpace(area.String())
	return c
}
