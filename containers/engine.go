package containers

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/moby/moby/api/pkg/stdcopy"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/client"
	"github.com/testcontainers/testcontainers-go"
	tclog "github.com/testcontainers/testcontainers-go/log"

	"github.com/mailproof/mailproof/fixtures"
)

// The labels that everything of a lab carries.
const (
	labelLab   = "org.mailproof.lab"   // the lab's id
	labelOwner = "org.mailproof.owner" // who started it
	labelKept  = "org.mailproof.kept"  // "true": left standing on purpose
	labelImage = "org.mailproof.image" // on images: the hash of what they are made of
)

// An engine is the container engine, as far as a lab needs it.
type engine struct {
	cli     *testcontainers.DockerClient
	version string // "20.10.24"
	name    string // "Docker 20.10.24"
	api     string // the API version spoken
	arch    string // "amd64"
}

// quiet keeps testcontainers' banners out of our output, and its reaper out of
// labs where its image is not there: a lab cleans up by label.
var quiet = sync.OnceFunc(func() {
	tclog.SetDefault(tclog.NewNoopLogger())
	if _, set := os.LookupEnv("TESTCONTAINERS_RYUK_DISABLED"); !set {
		os.Setenv("TESTCONTAINERS_RYUK_DISABLED", "true")
	}
})

// openEngine finds the engine as testcontainers does (DOCKER_HOST, the current
// context, the default socket) and asks what it is.
func openEngine(ctx context.Context) (e *engine, err error) {
	quiet()
	// testcontainers panics where it finds no socket.
	defer func() {
		if r := recover(); r != nil {
			e, err = nil, noEngine(fmt.Errorf("%v", r))
		}
	}()
	asking, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	// testcontainers passes over a DOCKER_HOST that does not answer and takes
	// another engine; who names one means that one.
	if host := os.Getenv("DOCKER_HOST"); host != "" {
		if err := answers(asking); err != nil {
			return nil, &EngineError{Words: "DOCKER_HOST=" + host + ": " + err.Error(), Help: "unset DOCKER_HOST", Err: err}
		}
	}
	cli, err := testcontainers.NewDockerClientWithOpts(asking)
	if err != nil {
		return nil, noEngine(err)
	}
	v, err := cli.ServerVersion(asking, client.ServerVersionOptions{})
	if err != nil {
		cli.Close()
		return nil, noEngine(err)
	}
	e = &engine{cli: cli, version: v.Version, name: "Docker " + plainVersion(v.Version), api: cli.ClientVersion(), arch: v.Arch}
	if v.Os != "linux" {
		cli.Close()
		return nil, &EngineError{Words: "the engine runs " + v.Os + " containers, and a lab's are Linux"}
	}
	return e, nil
}

// answers asks the engine that DOCKER_HOST names.
func answers(ctx context.Context) error {
	cli, err := client.New(client.FromEnv)
	if err != nil {
		return err
	}
	defer cli.Close()
	_, err = cli.Ping(ctx, client.PingOptions{NegotiateAPIVersion: true})
	return err
}

func noEngine(err error) error {
	return &EngineError{Words: err.Error(), Help: "bash .ci/engine.sh", Err: err}
}

// plainVersion cuts a distribution's suffix: 20.10.24+dfsg1 is 20.10.24.
func plainVersion(v string) string {
	v, _, _ = strings.Cut(v, "+")
	return v
}

func (e *engine) close() { e.cli.Close() }

// apiAtLeast compares the API version spoken.
func (e *engine) apiAtLeast(major, minor int) bool {
	a, b, _ := strings.Cut(e.api, ".")
	x, _ := strconv.Atoi(a)
	y, _ := strconv.Atoi(b)
	return x > major || x == major && y >= minor
}

// A joint is one network that a container stands in, and its addresses there.
type joint struct {
	network string // the engine's name of it
	pair    fixtures.Pair
}

// A spec is a container to be made.
type spec struct {
	name  string
	image string
	cmd   []string
	// entrypoint takes the place of the image's own.
	entrypoint []string
	env        map[string]string
	stdin      bool   // its standard input is ours, and ends with us
	ns         string // the container whose network namespace it shares
	pid        string // the container whose processes it sees
	joints     []joint
	files      []file
	labels     map[string]string
	host       string // its host name
	caps       []string
	tmpfs      map[string]string // what is held in memory, with its options
}

// A file is put into a container before it starts.
type file struct {
	path string
	mode int64
	data []byte
}

// makingFor bounds how long an engine may take to make one thing.
const makingFor = 60 * time.Second

// whole lets an engine finish what it is asked to make, although ctx ends
// meanwhile. An engine makes it even where the one who asked has gone away;
// then it stands after everything that was seen has been removed.
func whole(ctx context.Context) (context.Context, context.CancelFunc, error) {
	if err := ctx.Err(); err != nil {
		return nil, nil, err
	}
	making, cancel := context.WithTimeout(context.WithoutCancel(ctx), makingFor)
	return making, cancel, nil
}

// removal is how long a removal that somebody else began may take.
const removal = 30 * time.Second

// hops bounds what a container sends to its own networks: nothing that it
// sends passes a router. IPv4 and IPv6 have a setting each, and newer engines
// take that of an interface only with the network.
const hopLimit = "net.ipv6.conf.IFNAME.hop_limit=1"

// create makes a container in all its networks and puts its files there. Once
// begun, it is finished even if ctx ends.
func (e *engine) create(ctx context.Context, s spec) (testcontainers.Container, error) {
	ctx, cancel, err := whole(ctx)
	if err != nil {
		return nil, err
	}
	defer cancel()
	perNetwork := e.apiAtLeast(1, 46)
	endpoint := func(j joint) *network.EndpointSettings {
		es := &network.EndpointSettings{IPAMConfig: &network.EndpointIPAMConfig{IPv4Address: j.pair.IP4, IPv6Address: j.pair.IP6}}
		if perNetwork {
			es.DriverOpts = map[string]string{"com.docker.network.endpoint.sysctls": hopLimit}
		}
		return es
	}
	req := testcontainers.ContainerRequest{
		Image:      s.image,
		Name:       s.name,
		Cmd:        s.cmd,
		Entrypoint: s.entrypoint,
		Env:        s.env,
		Labels:     s.labels,
		ConfigModifier: func(c *container.Config) {
			c.Hostname = s.host
			c.OpenStdin, c.AttachStdin, c.StdinOnce = s.stdin, s.stdin, s.stdin
		},
		HostConfigModifier: func(h *container.HostConfig) {
			h.CapAdd, h.Tmpfs = s.caps, s.tmpfs
			h.LogConfig = container.LogConfig{Type: "json-file"}
			if s.pid != "" {
				h.PidMode = container.PidMode("container:" + s.pid)
			}
			if s.ns != "" {
				h.NetworkMode = container.NetworkMode("container:" + s.ns)
				return
			}
			h.NetworkMode = "none"
			if len(s.joints) == 0 {
				return
			}
			h.NetworkMode = container.NetworkMode(s.joints[0].network)
			h.Sysctls = map[string]string{"net.ipv4.ip_default_ttl": "1", "net.ipv4.ip_forward": "0"}
			if !perNetwork {
				for i := range s.joints {
					h.Sysctls[strings.ReplaceAll("net.ipv6.conf.IFNAME.hop_limit", "IFNAME", "eth"+strconv.Itoa(i))] = "1"
				}
			}
		},
	}
	if len(s.joints) > 0 && s.ns == "" {
		req.Networks = []string{s.joints[0].network}
		req.EndpointSettingsModifier = func(m map[string]*network.EndpointSettings) {
			clear(m)
			m[s.joints[0].network] = endpoint(s.joints[0])
		}
	}
	c, err := testcontainers.GenericContainer(ctx, testcontainers.GenericContainerRequest{ContainerRequest: req, Logger: tclog.NewNoopLogger()})
	if err != nil {
		return nil, err
	}
	for _, j := range s.joints[min(1, len(s.joints)):] {
		if _, err := e.cli.NetworkConnect(ctx, j.network, client.NetworkConnectOptions{Container: c.GetContainerID(), EndpointConfig: endpoint(j)}); err != nil {
			return c, fmt.Errorf("joining %s at %s and %s: %w", j.network, j.pair.IP4, j.pair.IP6, err)
		}
	}
	if len(s.files) > 0 {
		if _, err := e.cli.CopyToContainer(ctx, c.GetContainerID(), client.CopyToContainerOptions{DestinationPath: "/", Content: bytes.NewReader(tarOf(s.files))}); err != nil {
			return c, fmt.Errorf("putting files into it: %w", err)
		}
	}
	return c, nil
}

// tarOf packs files with the folders above them.
func tarOf(files []file) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	now := time.Now()
	made := map[string]bool{}
	for _, f := range files {
		p := strings.TrimPrefix(f.path, "/")
		for i := range p {
			if p[i] == '/' && !made[p[:i+1]] {
				made[p[:i+1]] = true
				w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: p[:i+1], Mode: 0o755, ModTime: now})
			}
		}
		w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: p, Mode: f.mode, Size: int64(len(f.data)), ModTime: now})
		w.Write(f.data)
	}
	w.Close() // writes to memory do not fail
	return b.Bytes()
}

// attach opens a container's standard streams.
func (e *engine) attach(ctx context.Context, id string, stdin bool) (*client.HijackedResponse, error) {
	r, err := e.cli.ContainerAttach(ctx, id, client.ContainerAttachOptions{Stream: true, Stdin: stdin, Stdout: true, Stderr: true})
	if err != nil {
		return nil, err
	}
	return &r.HijackedResponse, nil
}

func (e *engine) start(ctx context.Context, id string) error {
	_, err := e.cli.ContainerStart(ctx, id, client.ContainerStartOptions{})
	return err
}

// exec runs a command in a container and returns its output, bounded.
func (e *engine) exec(ctx context.Context, id string, cmd ...string) (string, error) {
	ex, err := e.cli.ExecCreate(ctx, id, client.ExecCreateOptions{Cmd: cmd, AttachStdout: true, AttachStderr: true})
	if err != nil {
		return "", err
	}
	a, err := e.cli.ExecAttach(ctx, ex.ID, client.ExecAttachOptions{})
	if err != nil {
		return "", err
	}
	defer a.Close()
	stop := context.AfterFunc(ctx, a.Close)
	defer stop()
	var out, errs bytes.Buffer
	if _, err := stdcopy.StdCopy(&out, &errs, io.LimitReader(a.Reader, 4<<20)); err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return "", err
	}
	in, err := e.cli.ExecInspect(ctx, ex.ID, client.ExecInspectOptions{})
	if err != nil {
		return out.String(), err
	}
	if in.ExitCode != 0 {
		return out.String(), fmt.Errorf("%s: exit status %d: %s", strings.Join(cmd, " "), in.ExitCode, lastLines(errs.String(), 10))
	}
	return out.String(), nil
}

// removeContainers removes containers by id, all at once; one that is gone is
// no error.
func (e *engine) removeContainers(ctx context.Context, ids []string) error {
	errs := make([]error, len(ids))
	var wg sync.WaitGroup
	turn := make(chan struct{}, 8)
	for i, id := range ids {
		wg.Go(func() {
			turn <- struct{}{}
			defer func() { <-turn }()
			_, err := e.cli.ContainerRemove(ctx, id, client.ContainerRemoveOptions{Force: true, RemoveVolumes: true})
			switch {
			case err == nil, cerrdefs.IsNotFound(err):
			case strings.Contains(err.Error(), "already in progress"):
				errs[i] = e.waitFor(ctx, id, container.WaitConditionRemoved, removal)
			default:
				errs[i] = err
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// A stuckNetwork is one that the engine will not remove, for endpoints of
// containers that it does not have any more. Engines that start and remove
// containers side by side miscount them at times; restarting the engine helps,
// and the next lab can use the network as it is.
type stuckNetwork struct{ name string }

func (e *stuckNetwork) Error() string {
	return "the engine keeps the network " + e.name + ": it miscounted what stands in it, which is nothing; it goes when the engine is restarted, and does no harm until then"
}

// stuckFor is how long an engine may take to notice that a container which is
// gone stands in no network any more.
const stuckFor = 3 * time.Second

// removeNetwork removes a network. Engines under load keep an endpoint of a
// container that is gone already for a while: it is taken off by force where
// the engine still names it, and otherwise the engine is asked again, since it
// tells nobody when it has let go.
func (e *engine) removeNetwork(ctx context.Context, id string) error {
	waiting, cancel := context.WithTimeout(ctx, stuckFor)
	defer cancel()
	for {
		_, err := e.cli.NetworkRemove(ctx, id, client.NetworkRemoveOptions{})
		if err == nil || cerrdefs.IsNotFound(err) {
			return nil
		}
		if !strings.Contains(err.Error(), "active endpoints") {
			return err
		}
		n, ierr := e.cli.NetworkInspect(ctx, id, client.NetworkInspectOptions{})
		if ierr != nil {
			return errors.Join(err, ierr)
		}
		for _, c := range n.Network.Containers {
			_, derr := e.cli.NetworkDisconnect(ctx, id, client.NetworkDisconnectOptions{Container: c.Name, Force: true})
			if derr != nil && !cerrdefs.IsNotFound(derr) {
				err = errors.Join(err, derr)
			}
		}
		if pause(waiting, 200*time.Millisecond) == nil {
			continue
		}
		if len(n.Network.Containers) == 0 && ctx.Err() == nil {
			return &stuckNetwork{n.Network.Name}
		}
		return err
	}
}

// remains lists the containers and networks of labs; of one lab where id is given.
func (e *engine) remains(ctx context.Context, id string) (containers []container.Summary, networks []network.Summary, err error) {
	label := labelLab
	if id != "" {
		label += "=" + id
	}
	f := make(client.Filters).Add("label", label)
	cs, err := e.cli.ContainerList(ctx, client.ContainerListOptions{All: true, Filters: f})
	if err != nil {
		return nil, nil, err
	}
	ns, err := e.cli.NetworkList(ctx, client.NetworkListOptions{Filters: f})
	if err != nil {
		return nil, nil, err
	}
	return cs.Items, ns.Items, nil
}

// remove removes the containers and networks that f picks, but for the
// container spare. Networks that are stuck are told as [stuckNetwork] only.
func (e *engine) remove(ctx context.Context, id, spare string, f func(labels map[string]string) bool) error {
	cs, ns, err := e.remains(ctx, id)
	if err != nil {
		return err
	}
	var ids []string
	for _, c := range cs {
		if c.ID != spare && f(c.Labels) {
			ids = append(ids, c.ID)
		}
	}
	err = e.removeContainers(ctx, ids)
	for _, n := range ns {
		if !f(n.Labels) {
			continue
		}
		if nerr := e.removeNetwork(ctx, n.ID); nerr != nil {
			err = errors.Join(err, fmt.Errorf("removing the network %s: %w", n.Name, nerr))
		}
	}
	return err
}

// makeNetwork makes one of the lab's networks: internal, in both families, and
// without an IPv4 address of the host's. One that an earlier lab had to leave
// (see [stuckNetwork]) is taken over.
func (e *engine) makeNetwork(ctx context.Context, name string, n fixtures.Network, labels map[string]string) error {
	making, cancel, err := whole(ctx)
	if err != nil {
		return err
	}
	defer cancel()
	if left, ierr := e.cli.NetworkInspect(making, name, client.NetworkInspectOptions{}); ierr == nil && left.Network.Labels[labelLab] != "" && len(left.Network.Containers) == 0 {
		covers := func(p netip.Prefix) bool {
			return slices.ContainsFunc(left.Network.IPAM.Config, func(c network.IPAMConfig) bool { return c.Subnet == p })
		}
		if covers(n.IP4) && covers(n.IP6) {
			return nil
		}
	}
	ip6 := true
	_, err = e.cli.NetworkCreate(making, name, client.NetworkCreateOptions{
		Driver: "bridge", Internal: true, EnableIPv6: &ip6, Labels: labels,
		IPAM:    &network.IPAM{Driver: "default", Config: []network.IPAMConfig{{Subnet: n.IP4, Gateway: n.IP4.Masked().Addr().Next()}, {Subnet: n.IP6, Gateway: n.IP6.Masked().Addr().Next()}}},
		Options: map[string]string{"com.docker.network.bridge.inhibit_ipv4": "true"},
	})
	if err != nil {
		return fmt.Errorf("the network %s (%s, %s): %w%s", name, n.IP4, n.IP6, err, e.overlapHelp(ctx, n))
	}
	return nil
}

// overlapHelp names the network of somebody else's that stands where ours
// should.
func (e *engine) overlapHelp(ctx context.Context, n fixtures.Network) string {
	ns, err := e.cli.NetworkList(ctx, client.NetworkListOptions{})
	if err != nil {
		return ""
	}
	for _, other := range ns.Items {
		if other.Labels[labelLab] != "" {
			continue
		}
		overlaps := func(c network.IPAMConfig) bool {
			return c.Subnet.IsValid() && (c.Subnet.Overlaps(n.IP4) || c.Subnet.Overlaps(n.IP6))
		}
		if slices.ContainsFunc(other.IPAM.Config, overlaps) {
			return fmt.Sprintf("; the network %s has the same addresses: docker network rm %s", other.Name, other.Name)
		}
	}
	return ""
}

// overlapping names an address of this machine's own that lies in one of the
// lab's networks.
func overlapping(addrs []netip.Prefix) (netip.Prefix, string) {
	for _, a := range addrs {
		for _, n := range fixtures.Networks() {
			if n.IP4.Overlaps(a) || n.IP6.Overlaps(a) {
				return a, n.Name
			}
		}
	}
	return netip.Prefix{}, ""
}
