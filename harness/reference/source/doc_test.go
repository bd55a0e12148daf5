package source_test

import (
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"gotest.tools/v3/assert"
)

var reads = regexp.MustCompile(`(?:r|p|global)\.(?:str|bool|list|uint|int|words|enum|duration)\("([a-z0-9_]+)"|ts\.(?:list|domains)\(p, "([a-z_]+)"`)

// TestTableOfSettingsIsComplete holds the package's table to the code: every
// setting that is read stands in it, and none that is not.
func TestTableOfSettingsIsComplete(t *testing.T) {
	f, err := parser.ParseFile(token.NewFileSet(), "doc.go", nil, parser.ParseComments)
	assert.NilError(t, err)
	doc := f.Doc.Text()
	table := doc[strings.Index(doc, "Dovecot "):strings.Index(doc, "Tables:")]
	braces := regexp.MustCompile(`(\w*)\{([a-z_,]+)\}(\w*)`)
	table = braces.ReplaceAllStringFunc(table, func(s string) string {
		m := braces.FindStringSubmatch(s)
		var out []string
		for _, w := range strings.Split(m[2], ",") {
			out = append(out, m[1]+w+m[3])
		}
		return strings.Join(out, " ")
	})
	listed := map[string]bool{}
	for _, w := range regexp.MustCompile(`[a-z0-9_]+`).FindAllString(table, -1) {
		listed[w] = true
	}
	read := map[string]bool{}
	for _, dir := range []string{"dovecot", "postfix"} {
		files, err := filepath.Glob(dir + "/*.go")
		assert.NilError(t, err)
		for _, f := range files {
			b, err := os.ReadFile(f)
			assert.NilError(t, err)
			for _, m := range reads.FindAllStringSubmatch(string(b), -1) {
				read[m[1]+m[2]] = true
			}
		}
	}
	for _, stage := range []string{"client", "helo", "sender", "relay", "recipient", "data", "end_of_data"} {
		read["smtpd_"+stage+"_restrictions"] = true
	}
	delete(read, "smtpd_")
	for name := range read {
		assert.Assert(t, listed[name], "%s is read, and not in the table", name)
	}
	for name := range listed {
		if strings.Count(name, "_") > 1 && !read[name] && name != "smtpd_client_" {
			t.Errorf("%s is in the table, and not read", name)
		}
	}
}
