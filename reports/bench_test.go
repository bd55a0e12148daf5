package reports

import (
	"bytes"
	"fmt"
	"io"
	"runtime"
	"runtime/metrics"
	"testing"

	"github.com/mailproof/mailproof/harness/result"
)

// tenThousand is a run of 10,000 results, one in twenty failed.
func tenThousand() *result.Run {
	run := sampleRun()
	run.Diagnoses = nil
	run.Results = nil
	for i := range 10_000 {
		c := claims[i%len(claims)]
		c.id = fmt.Sprintf("%s-%d", c.id, i/40)
		r := passing(c, []string{bookworm, trixie}[i/20%2], facet([]string{"imap", "imaps"}[i%2], []string{"ip4", "ip6"}[i/2%2], "as-proxy"), i)
		r.ID = fmt.Sprintf("%s-%d", c.id, i)
		if i%20 == 0 {
			r = failing(r, c, result.Finding{Code: "mismatch", Wanted: "rip=198.51.100.7", Found: "rip=203.0.113.10 (the proxy's)", Evidence: []string{r.Witness[0].Line}})
		}
		run.Results = append(run.Results, r)
	}
	run.Counts = result.Count(run.Results)
	return run
}

// A gauge samples the heap whenever something is written.
type gauge struct {
	w       io.Writer
	octets  int
	peak    uint64
	samples []metrics.Sample
}

func newGauge(w io.Writer) *gauge {
	return &gauge{w: w, samples: []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}}
}

func (g *gauge) Write(p []byte) (int, error) {
	metrics.Read(g.samples)
	g.peak = max(g.peak, g.samples[0].Value.Uint64())
	g.octets += len(p)
	return g.w.Write(p)
}

// BenchmarkReports writes JUnit, HTML and JSON of 10,000 results. It reports
// the highest heap, the run itself and uncollected garbage included.
func BenchmarkReports(b *testing.B) {
	run := tenThousand()
	for name, write := range map[string]func(io.Writer) error{
		"json":     func(w io.Writer) error { return WriteJSON(w, run) },
		"junit":    func(w io.Writer) error { return WriteJUnit(w, run) },
		"html":     func(w io.Writer) error { return WriteHTML(w, run) },
		"markdown": func(w io.Writer) error { return WriteMarkdown(w, run) },
		"console":  func(w io.Writer) error { return NewConsole(w, ConsoleOptions{}).End(run) },
		"all": func(w io.Writer) error {
			if err := WriteJSON(w, run); err != nil {
				return err
			}
			if err := WriteJUnit(w, run); err != nil {
				return err
			}
			return WriteHTML(w, run)
		},
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			g := newGauge(io.Discard)
			for b.Loop() {
				runtime.GC()
				if err := write(g); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(g.peak)/1e6, "peak-MB")
			b.ReportMetric(float64(g.octets)/float64(b.N)/1e6, "MB/report")
		})
	}
}

func BenchmarkReadJSON(b *testing.B) {
	var text bytes.Buffer
	if err := WriteJSON(&text, tenThousand()); err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(text.Len()))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := ReadJSON(bytes.NewReader(text.Bytes())); err != nil {
			b.Fatal(err)
		}
	}
}
