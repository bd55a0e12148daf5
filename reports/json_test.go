package reports

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mailproof/mailproof/harness/result"
	"gotest.tools/v3/assert"
	"gotest.tools/v3/golden"
)

func jsonOf(t *testing.T, run *result.Run) string {
	t.Helper()
	var b bytes.Buffer
	assert.NilError(t, WriteJSON(&b, run))
	return b.String()
}

func TestJSONGolden(t *testing.T) {
	golden.Assert(t, jsonOf(t, sampleRun()), "sample.json")
}

func TestJSONIsWhatEncodingJSONWouldWrite(t *testing.T) {
	run := sampleRun()
	*run = tidy(reflect.ValueOf(*run)).Interface().(result.Run)
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	assert.NilError(t, enc.Encode(run))
	assert.Equal(t, jsonOf(t, sampleRun()), string(escapeHidden(b.Bytes())))
}

func TestJSONKeepsEverything(t *testing.T) {
	run := sampleRun()
	*run = tidy(reflect.ValueOf(*run)).Interface().(result.Run)
	back, err := ReadJSON(strings.NewReader(jsonOf(t, run)))
	assert.NilError(t, err)
	assert.DeepEqual(t, back, run)
}

func TestJSONCanBeShownOnATerminal(t *testing.T) {
	text := jsonOf(t, &result.Run{Notices: []string{"\x1b \u009b31m \u202e \x7f \U000e0041 \u2028 ä 世"}})
	assert.Equal(t, visibleText(text), text)
	assert.Assert(t, strings.Contains(text, `"\u001b \u009b31m \u202e \u007f \udb40\udc41 \u2028 ä 世"`), text)
	back, err := ReadJSON(strings.NewReader(text))
	assert.NilError(t, err)
	assert.Equal(t, back.Notices[0], "\x1b \u009b31m \u202e \x7f \U000e0041 \u2028 ä 世")
}

func TestJSONOfAnEmptyRun(t *testing.T) {
	run := &result.Run{Target: result.Target{Kind: "reference"}, Exit: result.ExitEmpty}
	text := jsonOf(t, run)
	assert.Assert(t, !strings.Contains(text, "null"), text)
	assert.Assert(t, strings.HasSuffix(text, "]\n}\n") && !strings.HasSuffix(text, "\n\n"))
	assert.NilError(t, againstSchema(t, text))
	_, err := ReadJSON(strings.NewReader(text))
	assert.NilError(t, err)
	assert.Assert(t, run.Results == nil && run.Schema == "", "WriteJSON changed the run")
}

func TestReadJSONIsTolerantOfAddedFields(t *testing.T) {
	text := strings.Replace(jsonOf(t, sampleRun()), `"tool": {`, `"added": [1], "tool": {"added": {"x": null},`, 1)
	assert.NilError(t, againstSchema(t, text))
	_, err := ReadJSON(strings.NewReader(text))
	assert.NilError(t, err)
}

func TestReadJSONRefuses(t *testing.T) {
	good := jsonOf(t, sampleRun())
	for name, c := range map[string]struct{ text, want string }{
		"another schema": {strings.Replace(good, "mailproof.result/1", "mailproof.result/2", 1), `the document is of schema "mailproof.result/2", and this mailproof reads "mailproof.result/1": use the mailproof that wrote it`},
		"no schema":      {`{}`, `the document names no schema, and "mailproof.result/1" was expected: is it a report that mailproof run wrote with --json?`},
		"empty":          {"", "the document is empty"},
		"cut":            {good[:len(good)/2], "the document is cut short"},
		"junk":           {"<html>", "the document is not JSON: octet 1: invalid character '<' looking for beginning of value"},
		"more behind":    {good + "{}", "the document is followed by something else: a report is one JSON object"},
		"wrong type":     {strings.Replace(good, `"exit": 1`, `"exit": "1"`, 1), "the document is no mailproof.result/1: field exit is of type string"},
		"verdict":        {strings.Replace(good, `"verdict": "unsupported"`, `"verdict": "great"`, 1), "has the verdict \"great\", which schema mailproof.result/1 does not know"},
		"edited":         {strings.Replace(good, `"verdict": "fail"`, `"verdict": "pass"`, 1), "are not those of its results"},
		"array":          {"[]", "the document is no mailproof.result/1: it is of type array"},
	} {
		_, err := ReadJSON(strings.NewReader(c.text))
		assert.Assert(t, err != nil, name)
		assert.Assert(t, strings.Contains(err.Error(), c.want), "%s: %v", name, err)
	}
	var se *SchemaError
	_, err := ReadJSON(strings.NewReader(`{"schema":"x"}`))
	assert.Assert(t, errors.As(err, &se) && se.Found == "x")
}

func FuzzReadJSON(f *testing.F) {
	var b bytes.Buffer
	small := sampleRun()
	small.Results = small.Results[:2]
	if err := WriteJSON(&b, small); err != nil {
		f.Fatal(err)
	}
	f.Add(b.Bytes())
	f.Add([]byte(`{"schema":"mailproof.result/1","results":[{"verdict":"pass"}],"counts":{"pass":1}}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		run, err := ReadJSON(bytes.NewReader(text))
		if err != nil {
			return
		}
		var again bytes.Buffer
		if err := WriteJSON(&again, run); err != nil {
			t.Fatalf("read but not written: %v", err)
		}
		back, err := ReadJSON(&again)
		if err != nil {
			t.Fatalf("written but not read: %v", err)
		}
		if !reflect.DeepEqual(run, back) {
			t.Fatal("written and read again, it is another run")
		}
	})
}

// ---- the schema

func TestGoldenDocumentsConform(t *testing.T) {
	assert.NilError(t, againstSchema(t, jsonOf(t, sampleRun())))
	text := golden.Get(t, "sample.json")
	assert.NilError(t, againstSchema(t, string(text)))
}

func TestSchemaRefuses(t *testing.T) {
	good := jsonOf(t, sampleRun())
	for name, text := range map[string]string{
		"schema number":  strings.Replace(good, "mailproof.result/1", "mailproof.result/2", 1),
		"unknown exit":   strings.Replace(good, `"exit": 1`, `"exit": 7`, 1),
		"null list":      strings.Replace(good, `"findings": []`, `"findings": null`, 1),
		"verdict":        strings.Replace(good, `"verdict": "pass"`, `"verdict": "ok"`, 1),
		"missing key":    strings.Replace(good, `"max_risk"`, `"maximal_risk"`, 1),
		"negative count": strings.Replace(good, `"pass": `, `"pass": -1`, 1),
		"local time":     strings.Replace(good, `"started": "2026-12-01T09:30:00Z"`, `"started": "2026-12-01T09:30:00+01:00"`, 1),
	} {
		assert.Assert(t, text != good, name)
		assert.Assert(t, againstSchema(t, text) != nil, name)
	}
}

// The schema and the model name the same fields, and a field is optional in
// the one exactly when it is in the other.
func TestSchemaIsTheModel(t *testing.T) {
	schema := schemaOf(t)
	seen := map[reflect.Type]bool{}
	var check func(typ reflect.Type, node map[string]any, path string)
	check = func(typ reflect.Type, node map[string]any, path string) {
		node = schema.resolve(t, node)
		switch typ.Kind() {
		case reflect.Pointer:
			check(typ.Elem(), node, path)
		case reflect.Slice:
			assert.Equal(t, node["type"], "array", path)
			check(typ.Elem(), node["items"].(map[string]any), path+"[]")
		case reflect.Struct:
			if typ == reflect.TypeFor[time.Time]() {
				assert.Equal(t, node["format"], "date-time", path)
				return
			}
			if seen[typ] {
				return
			}
			seen[typ] = true
			props := node["properties"].(map[string]any)
			required := node["required"].([]any)
			assert.Equal(t, len(props), typ.NumField(), "%s: the schema has %d properties, the model %d", path, len(props), typ.NumField())
			for i := range typ.NumField() {
				f := typ.Field(i)
				name, opts, _ := strings.Cut(f.Tag.Get("json"), ",")
				child, ok := props[name].(map[string]any)
				assert.Assert(t, ok, "%s.%s is not in the schema", path, name)
				assert.Equal(t, slices.Contains(required, any(name)), !strings.Contains(opts, "omitempty"), "%s.%s", path, name)
				check(f.Type, child, path+"."+name)
			}
		case reflect.String:
			if c, ok := node["const"]; ok {
				assert.Equal(t, c, result.Schema)
				return
			}
			if _, ok := node["enum"]; !ok {
				assert.Equal(t, node["type"], "string", path)
			}
		case reflect.Int:
			if _, ok := node["enum"]; !ok {
				assert.Equal(t, node["type"], "integer", path)
			}
		case reflect.Float64:
			assert.Equal(t, node["type"], "number", path)
		case reflect.Bool:
			assert.Equal(t, node["type"], "boolean", path)
		default:
			t.Fatalf("%s: the test knows no schema for %s", path, typ)
		}
	}
	check(reflect.TypeFor[result.Run](), schema.root, "run")
	var enum []string
	for _, v := range schema.defs["verdict"].(map[string]any)["enum"].([]any) {
		enum = append(enum, v.(string))
	}
	for _, v := range result.Verdicts() {
		assert.Assert(t, slices.Contains(enum, string(v)), "verdict %s", v)
	}
	assert.Equal(t, len(enum), len(result.Verdicts()))
}

// A schema validates by the part of JSON Schema that ours uses. A keyword that
// it does not know fails the test, so that none is silently ignored.
type schema struct{ root, defs map[string]any }

func schemaOf(t *testing.T) *schema {
	t.Helper()
	var root map[string]any
	assert.NilError(t, json.Unmarshal(JSONSchema, &root))
	assert.Equal(t, root["$schema"], "https://json-schema.org/draft/2020-12/schema")
	return &schema{root, root["$defs"].(map[string]any)}
}

func againstSchema(t *testing.T, text string) error {
	t.Helper()
	s := schemaOf(t)
	var doc any
	assert.NilError(t, json.Unmarshal([]byte(text), &doc))
	return s.validate(t, s.root, doc, "$")
}

func (s *schema) resolve(t *testing.T, node map[string]any) map[string]any {
	t.Helper()
	if ref, ok := node["$ref"].(string); ok {
		def, ok := s.defs[strings.TrimPrefix(ref, "#/$defs/")].(map[string]any)
		assert.Assert(t, ok, "the schema refers to %s, which is not there", ref)
		return def
	}
	return node
}

func (s *schema) validate(t *testing.T, node map[string]any, v any, path string) error {
	node = s.resolve(t, node)
	for keyword, arg := range node {
		switch keyword {
		case "$schema", "$id", "$defs", "title", "description", "format", "items", "properties", "$ref":
		case "type":
			if have := typeOf(v); have != arg && !(arg == "number" && have == "integer") {
				return fmt.Errorf("%s is %s, not %s", path, have, arg)
			}
		case "const":
			if v != arg {
				return fmt.Errorf("%s is %v, not %v", path, v, arg)
			}
		case "enum":
			if !slices.Contains(arg.([]any), v) {
				return fmt.Errorf("%s is %v, none of %v", path, v, arg)
			}
		case "pattern":
			if text, ok := v.(string); ok && !regexp.MustCompile(arg.(string)).MatchString(text) {
				return fmt.Errorf("%s is %q, which does not match %s", path, text, arg)
			}
		case "minimum":
			if n, ok := v.(float64); ok && n < arg.(float64) {
				return fmt.Errorf("%s is %v, below %v", path, n, arg)
			}
		case "maximum":
			if n, ok := v.(float64); ok && n > arg.(float64) {
				return fmt.Errorf("%s is %v, above %v", path, n, arg)
			}
		case "required":
			for _, name := range arg.([]any) {
				if m, ok := v.(map[string]any); ok {
					if _, ok := m[name.(string)]; !ok {
						return fmt.Errorf("%s has no %s", path, name)
					}
				}
			}
		default:
			t.Fatalf("the schema uses the keyword %s, which this test does not check", keyword)
		}
	}
	if m, ok := v.(map[string]any); ok {
		props, _ := node["properties"].(map[string]any)
		for name, child := range m {
			if p, ok := props[name].(map[string]any); ok {
				if err := s.validate(t, p, child, path+"."+name); err != nil {
					return err
				}
			}
		}
	}
	if list, ok := v.([]any); ok {
		for i, child := range list {
			if err := s.validate(t, node["items"].(map[string]any), child, fmt.Sprintf("%s[%d]", path, i)); err != nil {
				return err
			}
		}
	}
	return nil
}

func typeOf(v any) string {
	switch v := v.(type) {
	case nil:
		return "null"
	case bool:
		return "boolean"
	case string:
		return "string"
	case float64:
		if v == math.Trunc(v) {
			return "integer"
		}
		return "number"
	case []any:
		return "array"
	}
	return "object"
}
