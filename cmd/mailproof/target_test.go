package main

import (
	"context"
	"testing"

	"gotest.tools/v3/assert"

	"github.com/mailproof/mailproof/fixtures"
	"github.com/mailproof/mailproof/harness"
)

// Who plays what, and whether somebody asked for it.
func TestStandIns(t *testing.T) {
	real := harness.SourceSpec{Name: "dovecot-postfix@trixie", Kind: fixtures.DovecotPostfix, Version: "trixie"}
	asked := harness.SourceSpec{Name: "stalwart@0.15.5", Kind: fixtures.Stalwart, Version: "0.15.5", From: "reference"}
	program := harness.SourceSpec{Name: "stalwart@0.15.5", Kind: fixtures.Stalwart, Version: "0.15.5", From: "exec:/bin/true"}
	missing := harness.SourceSpec{Name: "stalwart@0.15.5", Kind: fixtures.Stalwart, Version: "0.15.5"}
	t.Setenv("DOCKER_HOST", "unix:///nowhere/docker.sock") // no image is to be had
	for _, c := range []struct {
		name    string
		lab     string
		specs   []harness.SourceSpec
		want    string // the lab
		played  int    // beside real ones
		unasked bool
	}{
		{"none", "docker", []harness.SourceSpec{real, program}, "docker", 0, false},
		{"beside, asked", "docker", []harness.SourceSpec{asked, real}, "docker", 1, false},
		{"alone, asked", "docker", []harness.SourceSpec{asked}, "reference", 0, false},
		{"beside, missing", "docker", []harness.SourceSpec{real, missing}, "docker", 1, true},
		{"alone, missing", "docker", []harness.SourceSpec{missing}, "reference", 0, true},
		{"the reference lab", "reference", []harness.SourceSpec{missing}, "reference", 0, false},
	} {
		got := targetFlags{}.standIn(context.Background(), chosen{lab: c.lab}, c.specs)
		assert.Equal(t, got.lab, c.want, c.name)
		assert.Equal(t, len(got.standIns), c.played, c.name)
		assert.Equal(t, got.unasked(), c.unasked, c.name)
		assert.Equal(t, len(got.notices) > 0, c.played > 0 || c.lab != c.want, c.name)
	}
}
