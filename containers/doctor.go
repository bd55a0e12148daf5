package containers

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/client"

	"github.com/mailproof/mailproof/fixtures"
)

// needSpace is how much disk the images and a full lab take, in octets.
const needSpace = 3 << 30

// A Check is one thing that the docker lab needs of this machine.
type Check struct {
	Name    string // what it is about: "engine", "ip6", "image bookworm" …
	OK      bool
	Found   string // what is there
	Missing string // what is not, and what cannot be judged without it; "" when OK
	Help    string // the command that would help; "" when there is none
}

// Doctor says what of the docker lab this machine can do. It changes nothing
// but for a network that it makes and removes.
func Doctor(ctx context.Context) []Check {
	e, err := openEngine(ctx)
	if err != nil {
		c := Check{Name: "engine", Found: firstLines(err.Error(), 3), Missing: "a container engine: nothing can be judged on real servers"}
		var ee *EngineError
		if errors.As(err, &ee) {
			c.Found, c.Help = firstLines(ee.Words, 3), ee.Help
		}
		return []Check{c, programCheck(runtime.GOARCH)}
	}
	defer e.close()
	checks := []Check{engineCheck(e), ip6Check(ctx, e), addressCheck(ctx, e)}
	for _, r := range fixtures.Releases(fixtures.DovecotPostfix) {
		checks = append(checks, imageCheck(ctx, e, r))
	}
	return append(checks, spaceCheck(ctx, e), programCheck(e.arch), labCheck(ctx, e))
}

func engineCheck(e *engine) Check {
	c := Check{Name: "engine", OK: e.apiAtLeast(1, 41), Found: fmt.Sprintf("%s, API %s, %s", e.name, e.api, e.arch)}
	if !c.OK {
		c.Missing, c.Help = "an engine of version 20.10 or newer", "apt-get install docker.io"
	}
	return c
}

// probeNetwork is made to see whether the engine can do IPv6.
const probeNetwork = "mailproof-doctor"

func ip6Check(ctx context.Context, e *engine) Check {
	on := true
	n, err := e.cli.NetworkCreate(ctx, probeNetwork, client.NetworkCreateOptions{
		Driver: "bridge", Internal: true, EnableIPv6: &on, Labels: map[string]string{labelLab: "doctor"},
		IPAM: &network.IPAM{Driver: "default", Config: []network.IPAMConfig{{Subnet: netip.MustParsePrefix("2001:db8:d0c::/64")}}},
	})
	if err != nil {
		return Check{Name: "ip6", Found: err.Error(), Missing: "networks with IPv6 in the engine: no lab starts without", Help: "sysctl net.ipv6.conf.all.disable_ipv6=0"}
	}
	if _, err := e.cli.NetworkRemove(ctx, n.ID, client.NetworkRemoveOptions{}); err != nil && !cerrdefs.IsNotFound(err) {
		return Check{Name: "ip6", Found: err.Error(), Missing: "the removal of a network", Help: "docker network rm " + probeNetwork}
	}
	return Check{Name: "ip6", OK: true, Found: "the engine makes networks with IPv6"}
}

// addressCheck looks for networks that stand where the lab's should.
func addressCheck(ctx context.Context, e *engine) Check {
	c := Check{Name: "addresses", OK: true, Found: "the lab's networks are free"}
	for _, n := range fixtures.Networks() {
		if help := e.overlapHelp(ctx, n); help != "" {
			_, cmd, _ := strings.Cut(help, ": ")
			return Check{Name: "addresses", Found: strings.TrimPrefix(help, "; "), Missing: "the lab's networks " + n.IP4.String() + " and " + n.IP6.String(), Help: cmd}
		}
	}
	var own []netip.Prefix
	addrs, _ := net.InterfaceAddrs() // none is known: nothing overlaps
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			own = append(own, p)
		}
	}
	_, networks, err := e.remains(ctx, "")
	if a, name := overlapping(own); name != "" && err == nil && len(networks) == 0 {
		return Check{Name: "addresses", Found: "this machine itself has the address " + a.String(), Missing: "the lab's " + name + " for itself: connections from this machine to that network would go to the lab"}
	}
	return c
}

func imageCheck(ctx context.Context, e *engine, release string) Check {
	c := Check{Name: "image " + release}
	ref := serverRecipe(release).tag()
	if has, err := e.hasImage(ctx, ref); err != nil || has {
		c.OK, c.Found = err == nil, ref+" is there"
		if err != nil {
			c.Found = err.Error()
		}
		return c
	}
	base := "debian:" + release + "-slim"
	if has, err := e.hasImage(ctx, base); err == nil && has {
		c.OK, c.Found = true, base+" is there; packages are installed on it at the first run"
		return c
	}
	path, err := exec.LookPath("mmdebstrap")
	if err == nil && runtime.GOOS == "linux" && runtime.GOARCH == e.arch {
		c.OK, c.Found = true, "not built yet; "+path+" can, if "+base+" cannot be pulled"
		return c
	}
	c.Found = "neither " + ref + " nor " + base + " nor mmdebstrap"
	c.Missing = "a source of Debian " + release + ", unless " + base + " can be pulled at the first run"
	c.Help = "docker pull " + base
	if runtime.GOOS == "linux" {
		c.Help += ", or apt-get install mmdebstrap"
	}
	return c
}

func spaceCheck(ctx context.Context, e *engine) Check {
	c := Check{Name: "disk", OK: true, Found: "the engine's disk cannot be seen from here"}
	info, err := e.cli.Client.Info(ctx, client.InfoOptions{})
	if err != nil {
		return c
	}
	root := info.Info.DockerRootDir
	if _, err := os.Stat(root); err != nil {
		return c
	}
	free, err := freeSpace(root)
	if err != nil {
		return c
	}
	c.Found = fmt.Sprintf("%.1f GB free at %s", float64(free)/1e9, root)
	if free < needSpace {
		c.OK, c.Missing, c.Help = false, fmt.Sprintf("%.1f GB for images and labs", needSpace/1e9), "docker image prune"
	}
	return c
}

// programCheck says where the vantages' program comes from.
func programCheck(arch string) Check {
	c := Check{Name: "vantages"}
	exe, err := os.Executable()
	if err == nil && isProgram(exe) && runsAlone(exe, arch) == nil {
		c.OK, c.Found = true, "this executable stands at the vantages"
		return c
	}
	if path, err := exec.LookPath("go"); err == nil {
		c.OK, c.Found = true, path+" builds the vantages' program"
		return c
	}
	c.Found = "this executable does not run in an empty Linux container"
	c.Missing = "a program for the vantages: no lab starts without"
	c.Help = "CGO_ENABLED=0 go build " + program
	return c
}

// labCheck looks for another lab.
func labCheck(ctx context.Context, e *engine) Check {
	in, err := e.cli.ContainerInspect(ctx, lockName, client.ContainerInspectOptions{})
	if cerrdefs.IsNotFound(err) {
		return Check{Name: "lab", OK: true, Found: "no other lab stands on this engine"}
	}
	if err != nil || in.Container.Config == nil || in.Container.State == nil {
		return Check{Name: "lab", Found: fmt.Sprint(err), Missing: "a look at the engine's containers"}
	}
	who := in.Container.Config.Labels[labelOwner]
	switch {
	case !in.Container.State.Running:
		return Check{Name: "lab", OK: true, Found: "what " + who + " has left is removed by the next lab"}
	case in.Container.Config.Labels[labelKept] == "true":
		return Check{Name: "lab", Found: "a lab that was kept by " + who, Missing: "the engine for a lab of ours", Help: removeCommand()}
	}
	return Check{Name: "lab", OK: true, Found: "the lab of " + who + " stands on this engine: the next one waits for it"}
}
