package proxy

// Places knows where the keys of a TOML document stand. The decoder itself
// tells positions of syntax errors only.
type Places struct{ root *keyNode }

// LocateKeys finds the place of every key of a document that is valid TOML.
func LocateKeys(text string) Places { return Places{locate(text)} }

// Of is the line and column, from 1, of a key, or of the nearest table above
// it that stands in the document.
func (p Places) Of(path ...string) (line, column int) {
	at := p.root.find(path)
	return at.line, at.column
}

// PlaceOf is the line and column, from 1, of an octet of a text.
func PlaceOf(text string, offset int) (line, column int) {
	at := placeOf(text, offset)
	return at.line, at.column
}
