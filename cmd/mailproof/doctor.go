package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/mailproof/mailproof/harness/reference/proxy"
)

type doctorCmd struct {
	JSON bool `name:"json" help:"Print JSON."`
}

type reportCmd struct{}

func (c *reportCmd) Run() error { return fmt.Errorf("report is not built yet") }

// isConfigError says whether a proxy did not start for its configuration.
func isConfigError(err error) bool {
	var list proxy.ConfigErrors
	var one *proxy.ConfigError
	return errors.As(err, &list) || errors.As(err, &one)
}

func (c *doctorCmd) Run(ctx context.Context, con *console) error {
	return fmt.Errorf("doctor is not built yet")
}
