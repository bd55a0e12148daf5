package harness

import (
	"context"
	"crypto/rand"
	"fmt"
	"strings"
	"sync"

	"github.com/mailproof/mailproof/fixtures"
	"github.com/mailproof/mailproof/harness/run"
)

// poolSize is how many accounts a source has.
const poolSize = 400

// AccountPool is the accounts of one source of a lab. It implements
// [run.Accounts]; what is released is handed out again, oldest first.
type AccountPool struct {
	all []run.Account
	// limited is an administrator who may not read what is others', where the
	// kind of source has one.
	limited run.Account

	mu    sync.Mutex
	free  []int
	freed chan struct{} // closed and replaced when something is released
}

// NewAccountPool makes the accounts of source i. Their names are no other source's,
// nor another lab's.
func NewAccountPool(i int) *AccountPool { return NewAccountPoolOf(i, poolSize) }

// NewAccountPoolOf is [NewAccountPool] with a number of accounts.
func NewAccountPoolOf(i, size int) *AccountPool {
	prefix := strings.ToLower(rand.Text()[:4])
	p := &AccountPool{freed: make(chan struct{}), limited: run.Account{Address: prefix + "-limited-admin", Password: rand.Text()}}
	for n := range size {
		p.all = append(p.all, run.Account{
			Address:  fmt.Sprintf("%s%02da%03d@%s", prefix, i, n, fixtures.Domain),
			Password: rand.Text(),
		})
		p.free = append(p.free, n)
	}
	return p
}

// Own says that an account is nobody else's while it is taken.
func (p *AccountPool) Own() bool { return true }

// Take waits for n accounts.
func (p *AccountPool) Take(ctx context.Context, n int) ([]run.Account, func(), error) {
	if n > len(p.all) {
		return nil, nil, fmt.Errorf("the lab has %d accounts, not %d", len(p.all), n)
	}
	for {
		p.mu.Lock()
		if len(p.free) >= n {
			got := append([]int(nil), p.free[:n]...)
			p.free = append([]int(nil), p.free[n:]...)
			p.mu.Unlock()
			as := make([]run.Account, n)
			for k, i := range got {
				as[k] = p.all[i]
			}
			return as, sync.OnceFunc(func() { p.release(got) }), nil
		}
		freed := p.freed
		p.mu.Unlock()
		select {
		case <-freed:
		case <-ctx.Done():
			return nil, nil, fmt.Errorf("waiting for %d accounts: %w", n, ctx.Err())
		}
	}
}

func (p *AccountPool) release(got []int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.free = append(p.free, got...)
	close(p.freed)
	p.freed = make(chan struct{})
}

// All lists every account, taken or not.
func (p *AccountPool) All() []run.Account { return p.all }

// Users is the accounts as a passwd-file of Dovecot's (scheme PLAIN).
func (p *AccountPool) Users() []byte {
	var b strings.Builder
	for _, a := range p.all {
		fmt.Fprintf(&b, "%s:%s::::::\n", a.Address, a.Password)
	}
	return []byte(b.String())
}

// Mailboxes is the accounts as a texthash map of Postfix's.
func (p *AccountPool) Mailboxes() []byte {
	var b strings.Builder
	for _, a := range p.all {
		fmt.Fprintf(&b, "%s mailbox\n", a.Address)
	}
	return []byte(b.String())
}
