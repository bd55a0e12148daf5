package reports

import (
	"bytes"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strings"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/mailproof/mailproof/harness/result"
)

// JSONSchema is the JSON Schema (draft 2020-12) of what [WriteJSON] writes.
//
//go:embed mailproof.result-1.schema.json
var JSONSchema []byte

// maxJSON bounds what ReadJSON reads, in octets.
const maxJSON = 512 << 20

// WriteJSON writes a run by the result contract: the fields in the order of
// the model, lists never null, counts that are those of the results, octets
// that are not UTF-8 written as the text \xff, characters that cannot be seen
// written as escapes, and one line end at the end.
func WriteJSON(w io.Writer, run *result.Run) error {
	doc := *run
	doc.Schema = result.Schema
	doc.Started = doc.Started.UTC()
	doc.Counts = result.Count(run.Results)
	results := doc.Results
	doc.Results = nil
	head, err := newEncoder("").encode(&doc)
	if err != nil {
		return err
	}
	// The results are written one by one: a large run need not be in memory twice.
	const place = "\n  \"results\": []" // a line end within a string would be escaped
	before, after, ok := bytes.Cut(head, []byte(place))
	if !ok {
		return errors.New("the document has no place for results: the result model lost its results field")
	}
	if _, err := fmt.Fprintf(w, "%s%s", before, strings.TrimSuffix(place, "]")); err != nil {
		return err
	}
	const margin = "    "
	enc := newEncoder(margin)
	for i := range results {
		text, err := enc.encode(&results[i])
		if err != nil {
			return fmt.Errorf("result %s: %w", results[i].Key(), err)
		}
		sep := ",\n" + margin
		if i == 0 {
			sep = sep[1:]
		}
		if _, err := io.WriteString(w, sep); err != nil {
			return err
		}
		if _, err := w.Write(text); err != nil {
			return err
		}
	}
	end := "]"
	if len(results) > 0 {
		end = "\n  ]"
	}
	_, err = fmt.Fprintf(w, "%s%s\n", end, after)
	return err
}

// An encoder writes values of the model as JSON that is indented by two
// spaces, after filling and cleaning a copy of them.
type encoder struct {
	buf bytes.Buffer
	enc *json.Encoder
}

// newEncoder makes an encoder that begins each line but the first with margin.
func newEncoder(margin string) *encoder {
	e := &encoder{}
	e.enc = json.NewEncoder(&e.buf)
	e.enc.SetEscapeHTML(false)
	e.enc.SetIndent(margin, "  ")
	return e
}

// encode takes a pointer. What it returns is good until the next call.
func (e *encoder) encode(v any) ([]byte, error) {
	e.buf.Reset()
	if err := e.enc.Encode(tidy(reflect.ValueOf(v)).Interface()); err != nil {
		return nil, err
	}
	return escapeHidden(bytes.TrimSuffix(e.buf.Bytes(), []byte("\n"))), nil
}

// escapeHidden writes the characters of JSON text that cannot be seen, or that
// reorder what can be, as JSON escapes. They can only stand within strings.
func escapeHidden(text []byte) []byte {
	var out []byte
	last := 0
	for i := 0; i < len(text); {
		if text[i] < utf8.RuneSelf && text[i] != 0x7f {
			i++
			continue
		}
		r, n := utf8.DecodeRune(text[i:])
		if !unicode.IsGraphic(r) {
			out = append(out, text[last:i]...)
			if a, b := utf16.EncodeRune(r); a != unicode.ReplacementChar {
				out = fmt.Appendf(out, `\u%04x\u%04x`, a, b)
			} else {
				out = fmt.Appendf(out, `\u%04x`, r)
			}
			last = i + n
		}
		i += n
	}
	if out == nil {
		return text
	}
	return append(out, text[last:]...)
}

// tidy copies a value so that no list is nil and every string is UTF-8. What
// needs no change is shared with the original.
func tidy(v reflect.Value) reflect.Value {
	switch v.Kind() {
	case reflect.Pointer:
		if v.IsNil() {
			return v
		}
		p := reflect.New(v.Type().Elem())
		p.Elem().Set(tidy(v.Elem()))
		return p
	case reflect.Slice:
		s := reflect.MakeSlice(v.Type(), v.Len(), v.Len())
		for i := range v.Len() {
			s.Index(i).Set(tidy(v.Index(i)))
		}
		return s
	case reflect.Struct:
		if !v.Type().Field(0).IsExported() { // time.Time
			return v
		}
		s := reflect.New(v.Type()).Elem()
		for i := range v.NumField() {
			if f := v.Field(i); f.Kind() == reflect.Slice && f.IsNil() && strings.Contains(v.Type().Field(i).Tag.Get("json"), ",omitempty") {
				continue
			}
			s.Field(i).Set(tidy(v.Field(i)))
		}
		return s
	case reflect.String:
		if !utf8.ValidString(v.String()) {
			return reflect.ValueOf(validUTF8(v.String())).Convert(v.Type())
		}
	}
	return v
}

// validUTF8 writes the octets that are not UTF-8 as \xff.
func validUTF8(s string) string {
	var b strings.Builder
	for len(s) > 0 {
		r, n := utf8.DecodeRuneInString(s)
		if r == utf8.RuneError && n == 1 {
			fmt.Fprintf(&b, `\x%02x`, s[0])
		} else {
			b.WriteString(s[:n])
		}
		s = s[n:]
	}
	return b.String()
}

// SchemaError says that a document is of another version of the contract, or
// of none.
type SchemaError struct{ Found string }

func (e *SchemaError) Error() string {
	if e.Found == "" {
		return fmt.Sprintf("the document names no schema, and %q was expected: is it a report that mailproof run wrote with --json?", result.Schema)
	}
	return fmt.Sprintf("the document is of schema %q, and this mailproof reads %q: use the mailproof that wrote it", e.Found, result.Schema)
}

// ReadJSON reads what [WriteJSON] wrote. It takes fields that it does not know,
// because fields may be added within a schema number; another schema is a
// [*SchemaError]. A document that is cut short, is followed by more, has an
// unknown verdict, or whose counts are not those of its results is an error,
// as is one of more than 512 MiB.
func ReadJSON(r io.Reader) (*result.Run, error) {
	limited := &io.LimitedReader{R: r, N: maxJSON + 1}
	dec := json.NewDecoder(limited)
	run := new(result.Run)
	err := dec.Decode(run)
	var field *json.UnmarshalTypeError
	if (err == nil || errors.As(err, &field) && field.Field != "") && run.Schema != result.Schema {
		return nil, &SchemaError{Found: visible(clip(run.Schema, 100))}
	}
	if err != nil {
		return nil, readError(err, limited)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		if limited.N <= 0 {
			return nil, readError(err, limited)
		}
		return nil, errors.New("the document is followed by something else: a report is one JSON object")
	}
	for i := range run.Results {
		if res := &run.Results[i]; !slices.Contains(result.Verdicts(), res.Verdict) {
			return nil, fmt.Errorf("result %d (%s) has the verdict %q, which schema %s does not know", i+1, visible(res.Key()), visible(clip(string(res.Verdict), 40)), result.Schema)
		}
	}
	run.Started = run.Started.UTC()
	if y := run.Started.Year(); y < 0 || y > 9999 {
		return nil, fmt.Errorf("the document began in the year %d", y)
	}
	if have := result.Count(run.Results); run.Counts != have {
		return nil, fmt.Errorf("the counts of the document (%s) are not those of its results (%s): it was cut or edited", countWords(run.Counts), countWords(have))
	}
	*run = tidy(reflect.ValueOf(*run)).Interface().(result.Run)
	return run, nil
}

func readError(err error, limited *io.LimitedReader) error {
	var syntax *json.SyntaxError
	var field *json.UnmarshalTypeError
	switch {
	case limited.N <= 0:
		return fmt.Errorf("the document is larger than %d MiB", maxJSON>>20)
	case errors.Is(err, io.EOF):
		return errors.New("the document is empty")
	case errors.Is(err, io.ErrUnexpectedEOF):
		return errors.New("the document is cut short")
	case errors.As(err, &syntax):
		return fmt.Errorf("the document is not JSON: octet %d: %w", syntax.Offset, err)
	case errors.As(err, &field) && field.Field == "":
		return fmt.Errorf("the document is no %s: it is of type %s", result.Schema, field.Value)
	case errors.As(err, &field):
		return fmt.Errorf("the document is no %s: field %s is of type %s", result.Schema, visible(field.Field), field.Value)
	}
	return err
}
