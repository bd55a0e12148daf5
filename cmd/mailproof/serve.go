package main

import (
	"context"

	"github.com/mailproof/mailproof/containers/vantage"
	"github.com/mailproof/mailproof/harness/reference/proxy"
)

type proxyCmd struct {
	Config string `required:"" placeholder:"FILE" help:"The configuration, in the format of the migration guide's proxy."`
}

// Run serves until the process is told to end.
func (c *proxyCmd) Run(ctx context.Context, con *console) error {
	if err := proxy.RunFile(ctx, c.Config, con.err); err != nil {
		if isConfigError(err) {
			return usageError{err}
		}
		return err
	}
	return nil
}

type vantageCmd struct{}

// Run serves a vantage inside a lab's container.
func (*vantageCmd) Run(ctx context.Context, con *console) error {
	return vantage.Serve(ctx, con.in, con.out)
}
