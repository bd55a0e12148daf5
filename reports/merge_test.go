package reports

import (
	"bytes"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/mailproof/mailproof/harness/result"
	"gotest.tools/v3/assert"
	"gotest.tools/v3/golden"
)

// shardsOf cuts a run as mailproof run --shard does.
func shardsOf(run *result.Run, of int) []*result.Run {
	shards := make([]*result.Run, of)
	for i := range shards {
		s := *run
		s.Plan.Shard = fmt.Sprintf("%d/%d", i+1, of)
		s.Started = run.Started.Add(time.Duration(i) * time.Second)
		s.Seconds = 5
		s.Results = nil
		s.Diagnoses = nil
		if i > 0 {
			s.Problems = nil
		}
		shards[i] = &s
	}
	for i, r := range run.Results {
		s := shards[i%of]
		s.Results = append(s.Results, r)
	}
	for _, s := range shards {
		for _, d := range run.Diagnoses {
			d.Results = slices.DeleteFunc(slices.Clone(d.Results), func(key string) bool {
				return !slices.ContainsFunc(s.Results, func(r result.Result) bool { return r.Key() == key })
			})
			if len(d.Results) > 0 {
				s.Diagnoses = append(s.Diagnoses, d)
			}
		}
		s.Counts = result.Count(s.Results)
	}
	return shards
}

func TestMergeOfShardsIsTheRun(t *testing.T) {
	run := sampleRun()
	for _, of := range []int{1, 2, 3, 7} {
		shards := shardsOf(run, of)
		before := jsonOf(t, shards[0])
		got, err := Merge(shards...)
		assert.NilError(t, err)
		assert.Equal(t, got.Counts, result.Count(run.Results))
		assert.Equal(t, got.Exit, run.Exit)
		assert.Equal(t, got.Plan.Shard, "")
		assert.Equal(t, got.Seconds, float64(of-1+5))
		assert.Assert(t, got.Started.Equal(run.Started))
		assert.DeepEqual(t, got.Problems, run.Problems)
		assert.DeepEqual(t, got.Notices, run.Notices)
		assert.DeepEqual(t, got.Excluded, run.Excluded)
		assert.DeepEqual(t, got.Target, run.Target)
		assert.Equal(t, len(got.Diagnoses), 2)
		for i := range got.Diagnoses {
			want := slices.Sorted(slices.Values(run.Diagnoses[i].Results))
			assert.DeepEqual(t, got.Diagnoses[i].Results, want)
			assert.DeepEqual(t, got.Diagnoses[i].Remedy, run.Diagnoses[i].Remedy)
		}
		d, err := Diff(run, got)
		assert.NilError(t, err)
		assert.Assert(t, d.Empty())
		assert.NilError(t, againstSchema(t, jsonOf(t, got)))
		assert.Equal(t, jsonOf(t, shards[0]), before, "merging changed a run")

		slices.Reverse(shards)
		again, err := Merge(shards...)
		assert.NilError(t, err)
		assert.Assert(t, reflect.DeepEqual(again, got), "the order of the arguments matters")
	}
}

func TestMergeRefuses(t *testing.T) {
	two := func() []*result.Run { return shardsOf(sampleRun(), 2) }
	for want, change := range map[string]func([]*result.Run) []*result.Run{
		"the runs cannot be merged: there are none": func([]*result.Run) []*result.Run { return nil },
		"the runs cannot be merged: they are not shards of one plan: their plan differs (aaa and bbb)": func(rs []*result.Run) []*result.Run {
			rs[0].Plan.SHA256, rs[1].Plan.SHA256 = "aaa", "bbb"
			return rs
		},
		"the runs cannot be merged: they are not shards of one plan: their target differs (docker and site)": func(rs []*result.Run) []*result.Run {
			rs[1].Target.Kind = "site"
			return rs
		},
		"the runs cannot be merged: they are not shards of one plan: their mailproof differs (0.1.0 53d3fc7 and 0.2.0 53d3fc7)": func(rs []*result.Run) []*result.Run {
			rs[1].Tool.Version = "0.2.0"
			return rs
		},
		"the runs cannot be merged: shard 2/2 is missing: its claims would look as if they had never been planned": func(rs []*result.Run) []*result.Run { return rs[:1] },
		"the runs cannot be merged: shard 1/2 is there twice": func(rs []*result.Run) []*result.Run {
			return []*result.Run{rs[0], rs[0], rs[1]}
		},
		`the runs cannot be merged: "2 of 2" is no shard: it should be like 2/3`: func(rs []*result.Run) []*result.Run {
			rs[1].Plan.Shard = "2 of 2"
			return rs
		},
		"the runs cannot be merged: one is shard of nothing and another 2/2": func(rs []*result.Run) []*result.Run {
			rs[0].Plan.Shard = ""
			return rs
		},
		"the runs cannot be merged: the source generic is not the same everywhere: as-shipped, with overlay ./ours, container image in one run, as-shipped, with overlay ./theirs, container image in another": func(rs []*result.Run) []*result.Run {
			rs[1].Target.Sources = slices.Clone(rs[1].Target.Sources)
			rs[1].Target.Sources[2].Layers = []string{"overlay ./theirs"}
			return rs
		},
	} {
		_, err := Merge(change(two())...)
		assert.Error(t, err, want)
		var me *MergeError
		assert.Assert(t, errors.As(err, &me))
	}
	rs := two()
	rs[1].Results = append(rs[1].Results, rs[0].Results[0])
	_, err := Merge(rs...)
	var dup *DuplicateError
	assert.Assert(t, errors.As(err, &dup))
	assert.Equal(t, dup.Key, rs[0].Results[0].Key())
}

func TestMergeExit(t *testing.T) {
	good := passing(claims[0], trixie, facet("imap", "ip4", "as-proxy"), 1)
	none := good
	none.Verdict = result.Unsupported
	part := func(exit int, rs ...result.Result) *result.Run { return &result.Run{Exit: exit, Results: rs} }
	for i, c := range []struct {
		want int
		runs []*result.Run
	}{
		{0, []*result.Run{part(0, good), part(0, good)}},
		{1, []*result.Run{part(0, good), part(1, good), part(3, good)}},
		{130, []*result.Run{part(1, good), part(130, good)}},
		{2, []*result.Run{part(1, good), part(2)}},
		{3, []*result.Run{part(0, good), part(3, good)}},
		{3, []*result.Run{part(3, none), part(3, none)}},
		{0, []*result.Run{part(0, good), part(3, none)}},
		{0, []*result.Run{part(0, good), part(4)}},
		{4, []*result.Run{part(4), part(4)}},
		{3, []*result.Run{{Exit: 3, Problems: []result.Problem{{}}}, part(0, good)}},
		{3, []*result.Run{{Exit: 3, Problems: []result.Problem{{}}}, part(4)}},
	} {
		for j := range c.runs {
			for k := range c.runs[j].Results {
				c.runs[j].Results[k].ID = fmt.Sprintf("a.%d-%d", j, k)
			}
		}
		got, err := Merge(c.runs...)
		assert.NilError(t, err)
		assert.Equal(t, got.Exit, c.want, "case %d", i)
	}
}

func TestDiffGolden(t *testing.T) {
	before, after := sampleRun(), sampleRun()
	after.Diagnoses = after.Diagnoses[1:]
	for i := range after.Results { // the trust was repaired, and something else broke
		r := &after.Results[i]
		if r.ExplainedBy == "DX-14" {
			r.Verdict, r.Findings = result.Pass, nil
		}
		if r.ID == "imap-id.offered" && r.Source == trixie {
			*r = failing(*r, claims[5], result.Finding{Wanted: "* OK [CAPABILITY {} ID {}", Found: "* OK ready\x1b"})
		}
	}
	after.Results = append(after.Results[1:], passing(claim{id: "relay.new", level: "must"}, trixie, facet("smtp", "ip4", "direct"), 1))
	after.Plan.SHA256 = "another"
	d, err := Diff(before, after)
	assert.NilError(t, err)
	var b bytes.Buffer
	assert.NilError(t, WriteDiff(&b, d))
	golden.Assert(t, b.String(), "diff.txt")

	same, err := Diff(before, sampleRun())
	assert.NilError(t, err)
	assert.Assert(t, same.Empty() && same.SamePlan)
	b.Reset()
	assert.NilError(t, WriteDiff(&b, same))
	golden.Assert(t, b.String(), "same.txt")
}

func TestDiffRefuses(t *testing.T) {
	_, err := Diff(nil, sampleRun())
	assert.Error(t, err, "there are two runs to compare, and one is missing")
	twice := sampleRun()
	twice.Results = append(twice.Results, twice.Results[0])
	_, err = Diff(sampleRun(), twice)
	var dup *DuplicateError
	assert.Assert(t, errors.As(err, &dup))
	assert.ErrorContains(t, err, "the later run: two results are called")
}
