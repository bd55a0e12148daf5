package main

import (
	"context"
	"errors"
	"net"

	"github.com/mailproof/mailproof/containers/vantage"
	"github.com/mailproof/mailproof/fixtures"
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

type vantageCmd struct {
	DNS bool `name:"dns" help:"Also answer for the lab's DNS zone, on port 53."`
}

// Run serves a vantage inside a lab's container.
func (c *vantageCmd) Run(ctx context.Context, con *console) error {
	if !c.DNS {
		return vantage.Serve(ctx, con.in, con.out)
	}
	zone, err := fixtures.Zone()
	if err != nil {
		return err
	}
	var l net.ListenConfig
	datagrams, err := l.ListenPacket(ctx, "udp", ":53")
	if err != nil {
		return err
	}
	defer datagrams.Close()
	connections, err := l.Listen(ctx, "tcp", ":53")
	if err != nil {
		return err
	}
	defer connections.Close()
	ctx, cancel := context.WithCancel(ctx)
	served := make(chan error, 1)
	go func() {
		defer cancel()
		served <- zone.Serve(ctx, datagrams, connections)
	}()
	err = vantage.Serve(ctx, con.in, con.out)
	cancel()
	return errors.Join(err, <-served)
}
