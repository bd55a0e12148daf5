package harness

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/mailproof/mailproof/fixtures"
	"github.com/mailproof/mailproof/harness/manage"
	"github.com/mailproof/mailproof/harness/result"
	"github.com/mailproof/mailproof/harness/run"
)

// StageReload is where a source rejects settings of a layer, and is judged all
// the same: a start drops silently what a reload rejects.
const StageReload = "reload"

// StalwartPool is how many accounts a lab's Stalwart has: each is a request of
// its own.
const StalwartPool = 120

// What a lab puts where its Stalwart's configuration looks for it.
const (
	StalwartConfigPath = "/opt/stalwart/etc/config.toml"
	StalwartCertPath   = "/etc/ssl/certs/mail.pem"
	StalwartKeyPath    = "/etc/ssl/private/mail.key"
	StalwartAdmin      = "admin"
)

// StalwartLimitedAdmin is the administrator of a lab's Stalwart who lacks the
// permission to read what is others'. [StalwartSetup.Settle] creates it.
func StalwartLimitedAdmin(pool *AccountPool) run.Account { return pool.limited }

// A StalwartSetup is what layers make of one Stalwart: what its configuration
// file holds, and what is done over its management API once it answers.
type StalwartSetup struct {
	File     fixtures.Keys     // the keys of its configuration file
	Hosts    string            // lines of its /etc/hosts
	Files    map[string]string // what is only copied, by path
	Database fixtures.Keys     // keys that belong to its database
	Stored   fixtures.Keys     // keys that are stored last, and not brought into force
	// Guide is what of its settings follows the guide, whatever its listeners
	// are called.
	Guide []run.Setting
}

// SetUpStalwart works out the setup of source i from its layers.
func SetUpStalwart(i int, s SourceSpec, layers []Laid) (*StalwartSetup, error) {
	recipe, err := stalwartGuide(i, s)
	if err != nil {
		return nil, err
	}
	keys := fixtures.Keys{}
	// Stalwart asks a public server about spam; where its name cannot be
	// resolved every reload is rejected.
	out := &StalwartSetup{Hosts: "127.0.0.1 public.pyzor.org\n", Files: map[string]string{}, Stored: fixtures.Keys{}}
	for _, l := range layers {
		for _, p := range l.Paths() {
			var err error
			switch text := l.Files[p]; {
			case p == "etc/hosts":
				out.Hosts += text + "\n"
			case p == fixtures.StoredFile:
				err = out.Stored.ParseKeys(p, text)
			case strings.HasPrefix(p, "stalwart/") && fixtures.IsConfig(p):
				err = keys.ParseKeys(p, text)
			case fixtures.IsConfig(p):
				err = fmt.Errorf("%s is configuration of another kind of source", p)
			default:
				out.Files[l.Dir+"/"+p] = text
			}
			if err != nil {
				return nil, &LayerError{l.Name, err}
			}
		}
	}
	out.Guide = followed(keys, recipe)
	out.File, out.Database = keys.Split()
	return out, nil
}

// stalwartGuide is what the guide has an operator set on source i.
func stalwartGuide(i int, s SourceSpec) (fixtures.Keys, error) {
	guide, err := fixtures.GuideRecipe(s.Kind, s.Version)
	if err != nil {
		return nil, err
	}
	names := fixtures.LabNames(i)
	for file, text := range guide.Files {
		if guide.Files[file], err = names.Expand(file, text); err != nil {
			return nil, &LayerError{guide.Name, err}
		}
	}
	keys, err := fixtures.StalwartKeys([]fixtures.Layer{guide})
	if err != nil {
		return nil, &LayerError{guide.Name, err}
	}
	return keys, nil
}

// followed is what of a source's settings follows the guide: the networks
// whose headers are taken, and the other settings that the guide names.
func followed(keys, recipe fixtures.Keys) []run.Setting {
	var out []run.Setting
	for _, name := range keys.Sorted() {
		_, named := recipe[name]
		listener, ok := strings.CutPrefix(name, "server.listener.")
		id, field, _ := strings.Cut(listener, ".")
		if named || strings.HasPrefix(name, "server.proxy.") || ok && id != fixtures.StalwartManagement && strings.HasPrefix(field, "proxy.") {
			out = append(out, run.Setting{Name: name, Value: keys[name]})
		}
	}
	return out
}

// Settle gives a running Stalwart what its file cannot hold: accounts, and the
// settings that belong to its database. What its reload rejects is returned as
// problems: then it is started again, which drops that and brings the rest into
// force.
func (s *StalwartSetup) Settle(ctx context.Context, source string, c *manage.Client, pool *AccountPool, restart func(context.Context) error) ([]result.Problem, error) {
	if err := c.Create(ctx, manage.Principal{Type: "domain", Name: fixtures.Domain}); err != nil {
		return nil, fmt.Errorf("the mail domain: %w", err)
	}
	if err := createAccounts(ctx, c, pool); err != nil {
		return nil, fmt.Errorf("the accounts: %w", err)
	}
	limited := pool.limited
	if err := c.Create(ctx, manage.Principal{Type: "individual", Name: limited.Address, Secrets: []string{limited.Password}, Roles: []string{"admin"}, Disabled: []string{"impersonate"}}); err != nil {
		return nil, fmt.Errorf("the limited administrator: %w", err)
	}
	settings := []run.Setting{
		// A server with a network has stored this by itself. Without it every
		// restart writes the shipped defaults over what was set.
		{Name: "version.spam-filter", Value: "2.0.0"},
	}
	for _, h := range fixtures.Hosts() {
		if h.Vantage != run.Proxy && h.Vantage != run.Relay {
			// What we probe from must not be banned for the probing.
			settings = append(settings, run.Setting{Name: "server.allowed-ip." + h.IP4.String()}, run.Setting{Name: "server.allowed-ip." + h.IP6.String()})
		}
	}
	var below []string
	for _, name := range s.Database.Sorted() {
		settings = append(settings, run.Setting{Name: name, Value: s.Database[name]})
		// What the first start stored of a list is no part of ours.
		if i := strings.LastIndexByte(name, '.'); i > 0 && strings.Trim(name[i+1:], "0123456789") == "" && !slices.Contains(below, name[:i]+".") {
			below = append(below, name[:i]+".")
		}
	}
	if err := errors.Join(c.Clear(ctx, below...), c.Insert(ctx, settings)); err != nil {
		return nil, fmt.Errorf("its settings: %w", err)
	}
	var problems []result.Problem
	var rejected *run.Rejected
	switch err := c.Reload(ctx); {
	case errors.As(err, &rejected):
		for _, name := range slices.Sorted(maps.Keys(rejected.Settings)) {
			problems = append(problems, result.Problem{Source: source, Stage: StageReload, Where: name, Words: rejected.Settings[name],
				Remedy: &result.Remedy{Text: "Mend or remove this setting. The server was started again, as if its operator had not read the answer of the reload: what follows was judged without the setting."}})
		}
		if err := restart(ctx); err != nil {
			return problems, err
		}
	case err != nil:
		return nil, fmt.Errorf("its reload: %w", err)
	}
	stored := make([]run.Setting, 0, len(s.Stored))
	for _, name := range s.Stored.Sorted() {
		stored = append(stored, run.Setting{Name: name, Value: s.Stored[name]})
	}
	if err := c.Insert(ctx, stored); err != nil {
		return problems, fmt.Errorf("its settings: %w", err)
	}
	return problems, nil
}

// createAccounts makes every account of a pool, several at a time.
func createAccounts(ctx context.Context, c *manage.Client, pool *AccountPool) error {
	all := pool.All()
	work := make(chan run.Account, len(all))
	for _, a := range all {
		work <- a
	}
	close(work)
	errs := make([]error, 8)
	var wg sync.WaitGroup
	for i := range errs {
		wg.Go(func() {
			for a := range work {
				if errs[i] = c.Create(ctx, manage.Principal{Type: "individual", Name: a.Address, Secrets: []string{a.Password}, Emails: []string{a.Address}, Roles: []string{"user"}}); errs[i] != nil {
					return
				}
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// StalwartSettings is what a Stalwart has stored that a diagnosis may look at,
// from its file and its database alike, as one text.
func StalwartSettings(ctx context.Context, c *manage.Client) (run.ConfigFile, error) {
	stored, err := c.List(ctx, "http", "session", "auth", "queue", "spam-filter", "server", "imap", "pop3", "version", "lookup")
	var b strings.Builder
	for _, s := range stored {
		fmt.Fprintf(&b, "%s = %s\n", s.Name, s.Value)
	}
	return run.ConfigFile{Path: "settings", Text: b.String(), Command: true}, err
}
