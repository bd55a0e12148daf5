package containers

import (
	"context"

	"github.com/mailproof/mailproof/fixtures"
	"github.com/mailproof/mailproof/harness"
)

// ReferenceProxy is the reference proxy before these sources, announcing to
// each as its kind is announced to.
func ReferenceProxy(specs []harness.SourceSpec) *Proxy {
	kinds := make([]string, len(specs))
	for i, s := range specs {
		kinds[i] = s.Kind
	}
	return &Proxy{
		Name: "reference",
		Config: fixtures.ProxyConfig(kinds, `cert = "`+ProxyCertPath+`"
key = "`+ProxyKeyPath+`"`, `source = "file"
[mapping.file]
path = "`+ProxyMapPath+`"
`),
		Destination: func(source string) string {
			for i, s := range specs {
				if s.Name == source {
					return fixtures.Destination(i)
				}
			}
			return fixtures.Destination(0)
		},
		Endpoints: harness.ProxyEndpoints(),
	}
}

// StalwartThere says why there is no image for a Stalwart that was named
// without one, or nil. It tries once to pull it.
func StalwartThere(ctx context.Context, s harness.SourceSpec) error {
	e, err := openEngine(ctx)
	if err != nil {
		return err
	}
	defer e.close()
	_, err = e.stalwartImage(ctx, s, func(string) {})
	return err
}

// Answers says why no container engine can be used, or nil.
func Answers(ctx context.Context) error {
	e, err := openEngine(ctx)
	if err != nil {
		return err
	}
	return e.cli.Close()
}
