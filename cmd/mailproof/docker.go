package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/mailproof/mailproof/containers"
	"github.com/mailproof/mailproof/harness"
	"github.com/mailproof/mailproof/harness/result"
)

// dockerLab starts the docker lab with the reference proxy before its sources.
func dockerLab(ctx context.Context, specs []harness.SourceSpec, keep bool, progress func(string)) (*containers.Lab, error) {
	return containers.Start(ctx, containers.Options{Sources: specs, Proxy: containers.ReferenceProxy(specs), Keep: keep, Progress: progress})
}

func startDocker(ctx context.Context, specs []harness.SourceSpec, keep bool, progress func(string)) (*harness.Target, func(context.Context) error, error) {
	lab, err := dockerLab(ctx, specs, keep, progress)
	if err != nil {
		return nil, nil, err
	}
	return lab.Target(), lab.Close, nil
}

// dockerStarter starts docker labs for the kill matrix.
func dockerStarter(progress func(string)) harness.Starter {
	return func(ctx context.Context, specs []harness.SourceSpec) (*harness.Target, func(context.Context) error, error) {
		return startDocker(ctx, specs, false, progress)
	}
}

// stalwartThere says why there is no real Stalwart to start, or nil.
func stalwartThere(ctx context.Context, s harness.SourceSpec) error {
	return containers.StalwartThere(ctx, s)
}

// engineAnswers says why no container engine can be used, or nil.
func engineAnswers(ctx context.Context) error { return containers.Answers(ctx) }

// layOverlay lays an operator's own configuration over the sources it is for.
func layOverlay(specs []harness.SourceSpec, word, lab string) error {
	name, dir, ok := cutOverlay(word)
	if !ok {
		return usagef("--overlay %s: write KIND[@VERSION]=DIR", word)
	}
	if lab == "reference" {
		return usagef("--overlay %s: the reference server is no Dovecot and no Postfix, and takes no configuration of yours: use --lab docker", word)
	}
	layer, err := containers.ReadOverlay(dir)
	if err != nil {
		return usagef("--overlay %s: %w", word, err)
	}
	laid := false
	for i := range specs {
		s := &specs[i]
		if name != s.Kind && name != s.Kind+"@"+s.Version {
			continue
		}
		s.Layers = append(s.Layers, layer)
		laid = true
	}
	if !laid {
		return usagef("--overlay %s: none of the sources is %q", word, name)
	}
	return nil
}

func cutOverlay(word string) (name, dir string, ok bool) {
	for i := range word {
		if word[i] == '=' {
			return word[:i], word[i+1:], i > 0 && i+1 < len(word)
		}
	}
	return "", "", false
}

// labProblem is why a lab did not start, as a report says it.
func labProblem(lab string, err error) result.Problem {
	var engine *containers.EngineError
	var kept *containers.KeptError
	var start *containers.StartError
	switch {
	case errors.As(err, &engine):
		p := result.Problem{Stage: containers.StageEngine, Where: "this machine", Words: engine.Words}
		if engine.Help != "" {
			p.Remedy = &result.Remedy{Text: "Start a container engine, or judge the reference servers with --lab reference.", Apply: []string{engine.Help}}
		}
		return p
	case errors.As(err, &kept):
		return result.Problem{Stage: containers.StageEngine, Where: "this machine", Words: err.Error(),
			Remedy: &result.Remedy{Text: "Remove the kept lab.", Apply: []string{kept.Remove}}}
	case errors.As(err, &start):
		return start.Problem()
	}
	return result.Problem{Stage: "start", Where: fmt.Sprintf("the %s lab", lab), Words: err.Error()}
}
