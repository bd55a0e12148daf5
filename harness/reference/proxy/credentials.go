package proxy

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"strings"
)

// Credentials are what a client signs in with, in the form in which they are
// replayed: one mechanism and its initial response, octet for octet.
type credentials struct {
	mechanism string // PLAIN, OAUTHBEARER or XOAUTH2
	response  []byte // before base64
	account   string // the login name they route by; empty if they name none
}

var (
	errBase64      = errors.New("invalid base64")
	errCredentials = errors.New("malformed credentials")
)

// encoded is the initial response as it is sent.
func (c credentials) encoded() string {
	if len(c.response) == 0 {
		return "="
	}
	return base64.StdEncoding.EncodeToString(c.response)
}

// password makes PLAIN credentials (RFC 4616) from a name and a password. Any
// octet but NUL may stand in either.
func password(user, pass string) (credentials, error) {
	if user == "" || strings.ContainsRune(user, 0) || strings.ContainsRune(pass, 0) {
		return credentials{}, errCredentials
	}
	response := make([]byte, 0, len(user)+len(pass)+2)
	response = append(append(append(append(response, 0), user...), 0), pass...)
	return credentials{mechanism: "PLAIN", response: response, account: user}, nil
}

// decodeResponse decodes a SASL response; "=" is the empty one.
func decodeResponse(s string) ([]byte, error) {
	if s == "=" || s == "" {
		return nil, nil
	}
	b, err := base64.StdEncoding.DecodeString(s)
	if err != nil || strings.ContainsAny(s, "\r\n") {
		return nil, errBase64
	}
	return b, nil
}

// sasl reads the credentials in the response of a mechanism of one step.
func sasl(mechanism string, response []byte, claim string) (credentials, error) {
	c := credentials{mechanism: mechanism, response: response}
	switch mechanism {
	case "PLAIN":
		parts := bytes.Split(response, []byte{0})
		if len(parts) != 3 || len(parts[1]) == 0 {
			return c, errCredentials
		}
		// The mailbox is the authorization identity's, where one is given.
		c.account = string(parts[1])
		if len(parts[0]) > 0 {
			c.account = string(parts[0])
		}
	case "OAUTHBEARER": // RFC 7628, section 3.1
		header, rest, ok := strings.Cut(string(response), "\x01")
		if !ok || !strings.HasPrefix(header, "n,") && !strings.HasPrefix(header, "y,") {
			return c, errCredentials
		}
		if fields := strings.Split(header, ","); len(fields) > 1 {
			c.account = saslname(strings.TrimPrefix(fields[1], "a="))
		}
		token, ok := bearer(rest)
		if !ok {
			return c, errCredentials
		}
		if c.account == "" {
			c.account = jwtAccount(token, claim)
		}
	case "XOAUTH2":
		token, ok := bearer(string(response))
		if !ok {
			return c, errCredentials
		}
		for field := range strings.SplitSeq(string(response), "\x01") {
			if user, ok := strings.CutPrefix(field, "user="); ok {
				c.account = user
			}
		}
		if c.account == "" {
			c.account = jwtAccount(token, claim)
		}
	default:
		return c, errCredentials
	}
	return c, nil
}

// saslname undoes the escapes of RFC 5801, section 4.
func saslname(s string) string { return strings.NewReplacer("=2C", ",", "=3D", "=").Replace(s) }

// bearer finds the token in fields that end in 0x01.
func bearer(fields string) (string, bool) {
	for field := range strings.SplitSeq(fields, "\x01") {
		value, ok := strings.CutPrefix(field, "auth=")
		if !ok {
			continue
		}
		scheme, token, ok := strings.Cut(value, " ")
		if ok && strings.EqualFold(scheme, "Bearer") && token != "" {
			return token, true
		}
	}
	return "", false
}

// jwtAccount is the address that a JSON web token names, unverified: it only
// routes. Anything else names none.
func jwtAccount(token, claim string) string {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return ""
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return ""
	}
	var claims map[string]any
	if json.Unmarshal(payload, &claims) != nil {
		return ""
	}
	for _, name := range []string{claim, "email", "preferred_username", "upn", "unique_name", "sub"} {
		if v, ok := claims[name].(string); ok && strings.Contains(v, "@") {
			return v
		}
	}
	return ""
}
