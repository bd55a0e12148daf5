package containers

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/moby/moby/api/pkg/stdcopy"
	"github.com/moby/moby/client"

	"github.com/mailproof/mailproof/containers/vantage"
	"github.com/mailproof/mailproof/fixtures"
	"github.com/mailproof/mailproof/harness"
	"github.com/mailproof/mailproof/harness/manage"
	"github.com/mailproof/mailproof/harness/run"
)

// cleanFor bounds the removal of a lab.
const cleanFor = 60 * time.Second

// Options say what a lab is to hold.
type Options struct {
	// Sources are started side by side, at most [fixtures.MaxSources].
	Sources []harness.SourceSpec
	// Proxy, where it is set, is started on the proxy's addresses.
	Proxy *Proxy
	// Keep leaves the lab standing when it is closed.
	Keep bool
	// Progress is told what is being done, one plain sentence at a time. It may
	// be nil, and is called from several goroutines, one at a time.
	Progress func(string)
	// Program is the executable that stands at the vantages: a static one of
	// this module's command. Where it is empty, this very executable is used if
	// it is one, and otherwise one is built.
	Program string
	// Jobs bounds how many containers are started at a time; 0 leaves it to
	// the lab.
	Jobs int
}

// A Lab is running sources, the vantages around them and the networks between.
type Lab struct {
	e        *engine
	id       string
	lock     *lock
	ca       *fixtures.Authority
	progress func(string)
	keep     bool
	owner    string

	target   *run.Target
	failures []*StartError
	kept     []string // what Keep tells

	mu       sync.Mutex
	vantages []*vantage.Client
	streams  []*client.HijackedResponse
	admins   []*manage.Client
	readers  sync.WaitGroup

	closing sync.Once
	going   chan struct{} // closed when the lab is being closed
	closed  error
	stop    func() bool
}

// Start starts a lab. It waits for another lab on the same engine to end, and
// removes what a dead one has left.
//
// An error says that there is no lab: no engine ([EngineError]), one that was
// kept ([KeptError]), no vantage or no network. Sources that did not start are
// no error: [Lab.Failures] has them, and so has the target as problems. When
// ctx ends, the lab is closed.
func Start(ctx context.Context, o Options) (*Lab, error) {
	target, err := harness.Blueprint("docker", o.Sources, o.Proxy != nil)
	if err != nil {
		return nil, err
	}
	say := o.progress()
	e, err := openEngine(ctx)
	if err != nil {
		return nil, err
	}
	target.Engine = e.name
	l := &Lab{e: e, id: strings.ToLower(rand.Text()[:12]), progress: say, keep: o.Keep, target: target, owner: owner(), going: make(chan struct{})}
	if err := l.start(ctx, o); err != nil {
		l.keep = false
		return nil, errors.Join(err, l.Close(context.WithoutCancel(ctx)))
	}
	if !o.Keep {
		l.stop = context.AfterFunc(ctx, func() { l.Close(context.WithoutCancel(ctx)) })
	}
	return l, nil
}

func (o Options) progress() func(string) {
	if o.Progress == nil {
		return func(string) {}
	}
	var mu sync.Mutex
	return func(s string) {
		mu.Lock()
		defer mu.Unlock()
		o.Progress(s)
	}
}

func (l *Lab) start(ctx context.Context, o Options) error {
	var err error
	if l.ca, err = fixtures.NewAuthority(); err != nil {
		return err
	}
	agent, images, err := l.images(ctx, o)
	if err != nil {
		return err
	}
	if l.lock, err = l.e.acquire(ctx, agent, l.id, l.owner, o.Keep, l.progress); err != nil {
		return err
	}
	// Whoever holds the lock is the only lab: what others have left is a dead one's.
	err = l.e.remove(ctx, "", l.lock.id, func(labels map[string]string) bool { return labels[labelLab] != l.id })
	if err = l.tellStuck(err); err != nil {
		return fmt.Errorf("removing what a dead lab has left: %w", err)
	}
	for _, n := range fixtures.Networks() {
		if err := l.e.makeNetwork(ctx, l.networkName(n.Name), n, l.labels()); err != nil {
			return err
		}
	}
	return l.containers(ctx, o, agent, images)
}

// An imaged is the outcome of making one image.
type imaged struct {
	ref string
	err error
}

// imageKey tells the images of sources apart.
func imageKey(s harness.SourceSpec) string { return s.Kind + "@" + s.Version + "=" + s.From }

// images makes the vantages' image and that of each kind of source. A source
// whose image cannot be made is that source's failure and not the lab's.
func (l *Lab) images(ctx context.Context, o Options) (string, map[string]imaged, error) {
	dir, err := os.MkdirTemp("", "mailproof-")
	if err != nil {
		return "", nil, err
	}
	defer os.RemoveAll(dir)
	specs := map[string]harness.SourceSpec{}
	for _, s := range o.Sources {
		if !s.Elsewhere {
			specs[imageKey(s)] = s
		}
	}
	made := map[string]imaged{}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, key := range slices.Sorted(maps.Keys(specs)) {
		wg.Go(func() {
			var ref string
			var err error
			if s := specs[key]; s.Kind == fixtures.Stalwart {
				ref, err = l.e.stalwartImage(ctx, s, l.progress)
			} else {
				ref, err = l.e.serverImage(ctx, s.Version, l.progress)
			}
			mu.Lock()
			defer mu.Unlock()
			made[key] = imaged{ref, err}
		})
	}
	path := o.Program
	if path == "" {
		path, err = findProgram(ctx, l.e.arch, dir, l.progress)
	} else {
		err = runsAlone(path, l.e.arch)
	}
	var agent string
	if err == nil {
		agent, err = l.e.agentImage(ctx, path, l.progress)
	}
	wg.Wait()
	if err == nil {
		err = ctx.Err()
	}
	return agent, made, err
}

// containers starts the vantages, the sources and the proxy.
func (l *Lab) containers(ctx context.Context, o Options, agent string, images map[string]imaged) error {
	jobs := o.Jobs
	if jobs <= 0 {
		jobs = 6
	}
	turn := make(chan struct{}, jobs)
	var wg sync.WaitGroup
	each := func(f func()) {
		wg.Go(func() {
			turn <- struct{}{}
			defer func() { <-turn }()
			f()
		})
	}
	hosts := fixtures.Hosts()
	made := make([]*standing, len(hosts))
	errs := make([]error, len(hosts))
	for i, h := range hosts {
		each(func() { made[i], errs[i] = l.startVantage(ctx, h, agent) })
	}
	sources := make([]*source, len(o.Sources))
	failed := make([]error, len(o.Sources))
	for i, s := range o.Sources {
		if s.Elsewhere {
			continue
		}
		img := images[imageKey(s)]
		if img.err != nil {
			failed[i] = imageFailure(s.Name, img.err)
			continue
		}
		each(func() {
			l.progress("starting " + s.Name)
			sources[i], failed[i] = l.startSource(ctx, i, s, img.ref)
		})
	}
	wg.Wait()
	if err := ctx.Err(); err != nil {
		return err
	}
	for i, h := range hosts {
		if errs[i] != nil {
			return fmt.Errorf("the vantage %s did not start: %w", h.Vantage, errs[i])
		}
		l.target.Vantages[h.Vantage] = made[i].client
	}
	for i := range sources {
		if o.Sources[i].Elsewhere {
			continue
		}
		each(func() {
			if failed[i] == nil && sources[i].stalwart != nil {
				failed[i] = sources[i].stalwart.settle(ctx)
			}
			if failed[i] == nil {
				failed[i] = l.reach(ctx, sources[i])
			}
		})
	}
	wg.Wait()
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := l.fill(o, sources, failed); err != nil {
		return err
	}
	if o.Proxy != nil {
		for _, st := range made {
			if st.host.Vantage == run.Proxy {
				if err := l.startProxy(ctx, o.Proxy, agent, st.id, sources); err != nil {
					return err
				}
			}
		}
	}
	l.kept = l.describe(sources)
	return nil
}

func imageFailure(name string, err error) error {
	words, where := err.Error(), "the image"
	var be *buildError
	if errors.As(err, &be) {
		words, where = be.err.Error()+":\n"+be.words, be.what
	}
	return &StartError{name, StageImage, where, words}
}

// fill turns what has started into the target, and what has not into problems.
func (l *Lab) fill(o Options, sources []*source, failed []error) error {
	var up []*run.Source
	for i, s := range l.target.Sources {
		if o.Sources[i].Elsewhere {
			continue
		}
		if failed[i] != nil {
			var se *StartError
			if !errors.As(failed[i], &se) {
				return failed[i]
			}
			l.failures = append(l.failures, se)
			l.target.Problems = append(l.target.Problems, se.Problem())
			continue
		}
		src := sources[i]
		s.Accounts = src.pool
		s.Roots = l.ca.Pool()
		s.Logs = map[string]run.LogFunc{"mail": src.journal.open}
		s.Config = l.config(src)
		s.Software = src.software
		l.target.Problems = append(l.target.Problems, src.problems...)
		if src.stalwart != nil {
			s.Admin = src.stalwart
			s.Administrator = &run.Account{Address: harness.StalwartAdmin, Password: src.stalwart.secret}
			limited := harness.StalwartLimitedAdmin(src.pool)
			s.Limited = &limited
		}
		up = append(up, s)
	}
	l.target.Sources = up
	if l.target.Proxy != nil {
		l.target.Proxy.Name = o.Proxy.name()
		l.target.Proxy.Roots = l.ca.Pool()
		if o.Proxy.Endpoints != nil {
			l.target.Proxy.Endpoints = o.Proxy.Endpoints
		}
	}
	return nil
}

// reach dials every endpoint of a source from every vantage's network. Whether
// a port is open is a scenario's question; that an address answers is the lab's.
func (l *Lab) reach(ctx context.Context, src *source) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	var errs [2]error
	var wg sync.WaitGroup
	c := l.target.Vantages[run.Client]
	for i, f := range []run.Family{run.IP4, run.IP6} {
		wg.Go(func() {
			for _, ep := range l.target.Sources[src.index].Endpoints {
				to := netip.AddrPortFrom(fixtures.NetworkNamed(fixtures.ClientNet).Source(src.index).Of(string(f)), ep.Port)
				nc, err := c.Dial(ctx, to)
				if err == nil {
					nc.Close()
					continue
				}
				if !refused(err) {
					errs[i] = &StartError{src.name, StageNetwork, to.String(), err.Error()}
					return
				}
			}
		})
	}
	wg.Wait()
	if errs[0] != nil {
		return errs[0]
	}
	return errs[1]
}

// A standing is one vantage's container.
type standing struct {
	host   fixtures.Host
	id     string
	client *vantage.Client
}

func (l *Lab) startVantage(ctx context.Context, h fixtures.Host, image string) (*standing, error) {
	joints := []joint{{l.networkName(h.Network), h.Pair}}
	var caps []string
	if h.Vantage == run.Proxy {
		joints = append(joints, joint{l.networkName(fixtures.ClientNet), fixtures.Public()})
	}
	cmd := []string{"vantage"}
	if v, _ := fixtures.Resolver(); h.Vantage == v {
		cmd = append(cmd, "--dns")
	}
	c, err := l.e.create(ctx, spec{
		name: "mailproof-" + h.Vantage, image: image, cmd: cmd, stdin: true,
		joints: joints, labels: l.labels(), host: h.Vantage, caps: caps,
	})
	if err != nil {
		return nil, err
	}
	id := c.GetContainerID()
	a, err := l.e.attach(ctx, id, true)
	if err != nil {
		return nil, err
	}
	if err := l.e.start(ctx, id); err != nil {
		a.Close()
		return nil, err
	}
	s := newStdio(a)
	v := vantage.New(h.Vantage, h.IP4, h.IP6, s)
	l.mu.Lock()
	l.vantages = append(l.vantages, v)
	l.mu.Unlock()
	ready, cancel := context.WithTimeout(ctx, startFor)
	defer cancel()
	if err := v.Ready(ready); err != nil {
		if w := s.words(); w != "" {
			err = fmt.Errorf("%w; it says: %s", err, w)
		}
		return nil, err
	}
	return &standing{h, id, v}, nil
}

// A stdio is a container's standard input and output as one stream; what it
// writes to standard error is kept.
type stdio struct {
	a    *client.HijackedResponse
	r    *io.PipeReader
	errs tail
	done chan struct{}
}

func newStdio(a *client.HijackedResponse) *stdio {
	r, w := io.Pipe()
	s := &stdio{a: a, r: r, done: make(chan struct{})}
	go func() {
		defer close(s.done)
		_, err := stdcopy.StdCopy(w, &s.errs, a.Reader)
		if err == nil {
			err = io.EOF
		}
		w.CloseWithError(err)
	}()
	return s
}

func (s *stdio) Read(b []byte) (int, error)  { return s.r.Read(b) }
func (s *stdio) Write(b []byte) (int, error) { return s.a.Conn.Write(b) }
func (s *stdio) words() string               { return s.errs.String() }

func (s *stdio) Close() error {
	s.a.Close()
	s.r.Close()
	<-s.done
	return nil
}

// follow reads a container's output into a journal until it ends.
func (l *Lab) follow(j *journal, a *client.HijackedResponse) {
	l.mu.Lock()
	l.streams = append(l.streams, a)
	l.mu.Unlock()
	l.readers.Go(func() { j.follow(a.Reader) })
}

// watch tells when a container ends while the lab stands, and what it said last.
func (l *Lab) watch(name string, j *journal) {
	l.readers.Go(func() {
		select {
		case <-j.done:
		case <-l.going:
			return
		}
		select {
		case <-l.going:
		default:
			l.progress(name + " has ended; its last words:\n" + j.tail(40))
		}
	})
}

// Target is what the lab has to judge. It is good until the lab is closed.
func (l *Lab) Target() *run.Target { return l.target }

// Failures are the sources that did not start.
func (l *Lab) Failures() []*StartError { return l.failures }

// Kept says, where the lab was started with Keep, where everything stands and
// how it is removed.
func (l *Lab) Kept() []string {
	if !l.keep {
		return nil
	}
	return l.kept
}

// Close removes the lab's containers and networks, or, with Keep, lets go of
// them. It may be called more than once.
func (l *Lab) Close(ctx context.Context) error {
	l.closing.Do(func() {
		close(l.going)
		if l.stop != nil {
			l.stop()
		}
		ctx, cancel := context.WithTimeout(ctx, cleanFor)
		defer cancel()
		if l.keep {
			l.letGo()
			l.e.close()
			return
		}
		if l.lock != nil {
			// The lock goes last: until then no other lab may start.
			err := l.e.remove(ctx, l.id, l.lock.id, func(map[string]string) bool { return true })
			l.closed = errors.Join(l.tellStuck(err), l.lock.release(ctx))
		}
		l.letGo()
		l.e.close()
	})
	return l.closed
}

// tellStuck tells of networks that the engine keeps, and returns what else went
// wrong in a removal.
func (l *Lab) tellStuck(err error) error {
	var rest []error
	for _, err := range parts(err) {
		var stuck *stuckNetwork
		if errors.As(err, &stuck) {
			l.progress(stuck.Error())
			continue
		}
		rest = append(rest, err)
	}
	return errors.Join(rest...)
}

// parts are the errors that were joined, or the one.
func parts(err error) []error {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		var out []error
		for _, e := range joined.Unwrap() {
			out = append(out, parts(e)...)
		}
		return out
	}
	if err == nil {
		return nil
	}
	return []error{err}
}

// letGo closes every stream to the lab's containers and waits for its readers.
func (l *Lab) letGo() {
	l.mu.Lock()
	vs, ss, as := l.vantages, l.streams, l.admins
	l.mu.Unlock()
	for _, a := range as {
		a.Close()
	}
	for _, v := range vs {
		v.Close()
	}
	for _, s := range ss {
		s.Close()
	}
	l.readers.Wait()
}

func (l *Lab) labels() map[string]string {
	m := map[string]string{labelLab: l.id, labelOwner: l.owner}
	if l.keep {
		m[labelKept] = "true"
	}
	return m
}

func (l *Lab) networkName(n string) string { return "mailproof-" + n }

// describe is what Keep tells.
func (l *Lab) describe(sources []*source) []string {
	var out []string
	for _, s := range sources {
		if s == nil {
			continue
		}
		p := fixtures.NetworkNamed(fixtures.ProxyNet).Source(s.index)
		out = append(out, fmt.Sprintf("%s stands at %s and %s (from the proxy's network): docker exec -it %s bash", s.name, p.IP4, p.IP6, s.container.GetContainerID()[:12]))
	}
	for _, h := range fixtures.Hosts() {
		out = append(out, fmt.Sprintf("the vantage %s was at %s and %s", h.Vantage, h.IP4, h.IP6))
	}
	return append(out, "remove it with: "+removeCommand())
}
