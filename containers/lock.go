package containers

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"
)

// lockName is the name of the container that is a lab's lock. Names of
// containers are unique on an engine, so only one lab can make it.
const lockName = "mailproof-lab"

// startingFor is how old a lock that was made and not yet started may be
// before its owner counts as dead.
const startingFor = 30 * time.Second

// removingFor is how long an owner that lives takes, once its lock has ended,
// to remove it.
const removingFor = 2 * time.Second

// A lock is the right to be the one lab on an engine. It is a container whose
// standard input its owner holds: it runs as long as the owner lives, and the
// engine ends it when the owner is gone, however the owner went. That is the
// owner's heartbeat, without a clock.
type lock struct {
	e    *engine
	id   string
	held interface{ Close() }
}

// owner is how a lab names who started it.
func owner() string {
	host, _ := os.Hostname()
	name := "?"
	if u, err := user.Current(); err == nil {
		name = u.Username
	}
	return fmt.Sprintf("%s (process %d of %s on %s, since %s)", filepath.Base(os.Args[0]), os.Getpid(), name, host, time.Now().Format("15:04:05"))
}

// acquire waits until no other lab stands on the engine. It names the owner it
// waits for.
func (e *engine) acquire(ctx context.Context, image, labID, who string, kept bool, progress func(string)) (*lock, error) {
	labels := map[string]string{labelLab: labID, labelOwner: who}
	if kept {
		labels[labelKept] = "true"
	}
	said := ""
	for {
		l, err := e.takeLock(ctx, image, labels, kept)
		if err == nil {
			return l, nil
		}
		if !cerrdefs.IsConflict(err) {
			return nil, fmt.Errorf("locking the engine for this lab: %w", err)
		}
		in, err := e.cli.ContainerInspect(ctx, lockName, client.ContainerInspectOptions{})
		if cerrdefs.IsNotFound(err) {
			continue // it has just gone
		}
		if err != nil {
			return nil, err
		}
		c := in.Container
		other := "somebody unknown"
		if c.Config != nil && c.Config.Labels[labelOwner] != "" {
			other = c.Config.Labels[labelOwner]
		}
		if c.Config != nil && c.Config.Labels[labelKept] == "true" {
			if c.State != nil && c.State.Running {
				return nil, &KeptError{Owner: other, Remove: removeCommand()}
			}
		}
		if c.State == nil || !c.State.Running {
			if made, err := time.Parse(time.RFC3339Nano, c.Created); err == nil && c.State != nil && c.State.Status == "created" && time.Since(made) < startingFor {
				if err := pause(ctx, 200*time.Millisecond); err != nil {
					return nil, err
				}
				continue
			}
			// An owner that lives is removing it just now.
			if e.waitFor(ctx, c.ID, container.WaitConditionRemoved, removingFor) == nil {
				continue
			}
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			progress("removing what " + other + " has left")
			if err := e.removeContainers(ctx, []string{c.ID}); err != nil {
				return nil, err
			}
			continue
		}
		if said != c.ID {
			said = c.ID
			progress("waiting for the lab of " + other)
		}
		if err := e.waitFor(ctx, c.ID, container.WaitConditionNotRunning, 0); err != nil {
			return nil, fmt.Errorf("another lab stands on this engine, of %s: %w", other, err)
		}
	}
}

func (e *engine) takeLock(ctx context.Context, image string, labels map[string]string, kept bool) (*lock, error) {
	making, cancel, err := whole(ctx)
	if err != nil {
		return nil, err
	}
	defer cancel()
	r, err := e.cli.ContainerCreate(making, client.ContainerCreateOptions{
		Name:       lockName,
		Config:     &container.Config{Image: image, Cmd: []string{"vantage"}, Labels: labels, OpenStdin: true, StdinOnce: !kept},
		HostConfig: &container.HostConfig{NetworkMode: "none"},
	})
	if err != nil {
		return nil, err
	}
	l := &lock{e: e, id: r.ID}
	if !kept {
		a, err := e.attach(ctx, r.ID, true)
		if err != nil {
			return nil, errors.Join(err, l.release(context.WithoutCancel(ctx)))
		}
		l.held = a
	}
	if err := e.start(ctx, r.ID); err != nil {
		return nil, errors.Join(err, l.release(context.WithoutCancel(ctx)))
	}
	return l, nil
}

// release lets the next lab start.
func (l *lock) release(ctx context.Context) error {
	// It is removed before it is let go of: who waits for it need not wonder
	// whether its owner is dead.
	err := l.e.removeContainers(ctx, []string{l.id})
	if l.held != nil {
		l.held.Close()
	}
	return err
}

// waitFor waits until a container has come to an end, or is gone, and no
// longer than d where d is not 0.
func (e *engine) waitFor(ctx context.Context, id string, c container.WaitCondition, d time.Duration) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if d > 0 {
		ctx, cancel = context.WithTimeout(ctx, d)
		defer cancel()
	}
	w := e.cli.ContainerWait(ctx, id, client.ContainerWaitOptions{Condition: c})
	select {
	case <-w.Result:
		return nil
	case err := <-w.Error:
		if cerrdefs.IsNotFound(err) {
			return nil
		}
		return err
	}
}

// removeCommand removes every lab of an engine by hand.
func removeCommand() string {
	f := strconv.Quote("label=" + labelLab)
	return "docker rm -f $(docker ps -aq --filter " + f + "); docker network rm $(docker network ls -q --filter " + f + ")"
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
