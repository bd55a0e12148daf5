package stalwart

import (
	"bufio"
	"bytes"
	"crypto/sha1"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"html"
	"io"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/mailproof/mailproof/harness/reference/source/mailbox"
	"github.com/mailproof/mailproof/harness/reference/stalwart/bug"
)

// sessionState is the state of every JMAP session: nothing changes it.
const sessionState = "3e25b2a0"

// coreCapability is what a session says of urn:ietf:params:jmap:core.
const coreCapability = `{"maxSizeUpload":50000000,"maxConcurrentUpload":4,"maxSizeRequest":10000000,"maxConcurrentRequests":4,"maxCallsInRequest":16,` +
	`"maxObjectsInGet":500,"maxObjectsInSet":500,"collationAlgorithms":["i;ascii-numeric","i;ascii-casemap","i;unicode-casemap"]}`

// accountCapabilities are what a session says of an account, in the server's
// order; @id stands for the account, and @sieve for the Sieve extensions.
var accountCapabilities = []pair{
	{"mail", `{"maxMailboxesPerEmail":null,"maxMailboxDepth":10,"maxSizeMailboxName":255,"maxSizeAttachmentsPerEmail":50000000,` +
		`"emailQuerySortOptions":["receivedAt","size","from","to","subject","sentAt","hasKeyword","allInThreadHaveKeyword","someInThreadHaveKeyword"],"mayCreateTopLevelMailbox":true}`},
	{"submission", `{"maxDelayedSend":2592000,"submissionExtensions":{"FUTURERELEASE":[],"SIZE":[],"DSN":[],"DELIVERYBY":[],"MT-PRIORITY":["MIXER"],"REQUIRETLS":[]}}`},
	{"vacationresponse", `{}`},
	{"contacts", `{"maxAddressBooksPerCard":null,"mayCreateAddressBook":true}`},
	{"contacts:parse", `{}`},
	{"calendars", `{"maxCalendarsPerEvent":null,"minDateTime":"0001-01-01T00:00:00Z","maxDateTime":"65534-12-31T23:59:59Z","maxExpandedQueryDuration":"P52W1D","maxParticipantsPerEvent":20,"mayCreateCalendar":true}`},
	{"calendars:parse", `{}`},
	{"websocket", `{}`},
	{"sieve", `{"maxSizeScriptName":512,"maxSizeScript":1048576,"maxNumberScripts":100,"maxNumberRedirects":1,"sieveExtensions":@sieve,"notificationMethods":["mailto"],"externalLists":null}`},
	{"blob", `{"maxSizeBlobSet":7499488,"maxDataSources":16,"supportedTypeNames":["Email","Thread","SieveScript"],"supportedDigestAlgorithms":["sha","sha-256","sha-512"]}`},
	{"quota", `{}`},
	{"principals", `{"currentUserPrincipalId":"@id"}`},
	{"principals:availability", `{"maxAvailabilityDuration":"P52W1D"}`},
	{"filenode", `{"maxFileNodeDepth":null,"maxSizeFileNodeName":255,"fileNodeQuerySortOptions":[],"mayCreateTopLevelFileNode":true}`},
}

const jmapURN = "urn:ietf:params:jmap:"

// jmapSession is the session resource (RFC 8620, 2.); nil is nobody's.
func (in *session) jmapSession(who *principal) []byte {
	base := in.base()
	socket := "ws" + strings.TrimPrefix(base, "http") + "/jmap/ws"
	var b strings.Builder
	quote := func(s string) string {
		q, err := encode(s)
		if err != nil {
			return `""`
		}
		return string(q)
	}
	b.WriteString(`{"capabilities":{"` + jmapURN + `core":` + coreCapability)
	for _, c := range []string{"mail", "calendars", "calendars:parse", "contacts", "contacts:parse", "filenode", "principals", "principals:availability", "submission", "vacationresponse"} {
		b.WriteString(`,"` + jmapURN + c + `":{}`)
	}
	b.WriteString(`,"` + jmapURN + `sieve":{"implementation":"Stalwart v1.0.0"},"` + jmapURN + `blob":{},"` + jmapURN + `quota":{},"` + jmapURN + `websocket":{"url":` + quote(socket) + `,"supportsPush":true}}`)
	b.WriteString(`,"accounts":{`)
	name := ""
	if who != nil {
		name = who.name
		// An administrator's session names its own account alone, although it
		// may read the others.
		fmt.Fprintf(&b, `%s:{"name":%s,"isPersonal":true,"isReadOnly":false,"accountCapabilities":{`, quote(who.account()), quote(name))
		for j, c := range accountCapabilities {
			if j > 0 {
				b.WriteByte(',')
			}
			sieve, _ := encode(strings.Fields(sieveExtensions))
			b.WriteString(`"` + jmapURN + c.key + `":` + strings.NewReplacer("@id", who.account(), "@sieve", string(sieve)).Replace(c.value))
		}
		b.WriteString(`}}`)
	}
	b.WriteString(`},"primaryAccounts":{`)
	if who != nil {
		for j, c := range accountCapabilities {
			if j > 0 {
				b.WriteByte(',')
			}
			b.WriteString(`"` + jmapURN + c.key + `":` + quote(who.account()))
		}
	}
	b.WriteString(`},"username":` + quote(name))
	for _, u := range []pair{{"apiUrl", "/jmap/"}, {"downloadUrl", "/jmap/download/{accountId}/{blobId}/{name}?accept={type}"}, {"uploadUrl", "/jmap/upload/{accountId}/"},
		{"eventSourceUrl", "/jmap/eventsource/?types={types}&closeafter={closeafter}&ping={ping}"}} {
		b.WriteString(`,"` + u.key + `":` + quote(base+u.value))
	}
	state := sessionState
	if who == nil {
		state = "0"
	}
	b.WriteString(`,"state":"` + state + `"}`)
	return []byte(b.String())
}

func (in *session) jmap(r *request, what string, p []string) *response {
	if what == "session" && r.method == "GET" {
		var who *principal
		if _, ok := r.field("authorization"); ok {
			var refusal *response
			if who, refusal = in.authorize(r, false); refusal != nil {
				return refusal
			}
		}
		return content(jsonType, in.jmapSession(who))
	}
	known := map[string]string{"": "POST", "download": "GET", "upload": "POST", "eventsource": "GET", "ws": "GET"}
	if known[what] != r.method || what == "" && len(p) > 2 {
		return nil
	}
	who, refusal := in.authorize(r, false)
	if refusal != nil {
		return refusal
	}
	switch what {
	case "":
		reply, bad := in.jmapCall(who, r.body)
		if bad != nil {
			return bad
		}
		return jsonValue(reply)
	case "upload":
		if len(p) < 3 || !in.mayRead(who, p[2]) {
			return forbidden()
		}
		kind, ok := r.field("content-type")
		if !ok {
			kind = "application/octet-stream"
		}
		id, ok := in.srv.blobs.put(r.body)
		if !ok {
			return problemOf(403, "Quota exceeded", "You have exceeded your account quota.")
		}
		return jsonValue(struct {
			Account string `json:"accountId"`
			Blob    string `json:"blobId"`
			Type    string `json:"type"`
			Size    int    `json:"size"`
		}{p[2], id, kind, len(r.body)})
	case "download":
		if len(p) < 5 || !in.mayRead(who, p[2]) {
			return notFound()
		}
		blob, ok := in.srv.blobs.get(p[3])
		if !ok {
			return notFound()
		}
		kind := r.query.Get("accept")
		if kind == "" || strings.ContainsAny(kind, "\r\n") {
			kind = "application/octet-stream"
		}
		name, _ := url.PathUnescape(p[4])
		return content(kind, blob).with("content-disposition", "attachment; filename="+strconv.Quote(name)).with("cache-control", "private, immutable, max-age=31536000")
	case "eventsource":
		return in.eventSource(r)
	}
	return in.webSocket(r, who)
}

// mayRead says whether somebody may use an account.
func (in *session) mayRead(who *principal, account string) bool {
	return who.account() == account || in.readsAll(who)
}

// readsAll says whether somebody may read what is not its own.
func (in *session) readsAll(who *principal) bool {
	return who.admin && !slices.Contains(who.disabled, "impersonate") && !in.srv.bugs.Has(bug.AdministratorReadsNothing) || in.srv.bugs.Has(bug.EveryoneReads)
}

// accountOf finds the account of an id.
func (in *session) accountOf(id string) *principal {
	for _, p := range in.srv.dir.list([]string{"individual"}, "") {
		if p.account() == id {
			return p
		}
	}
	return nil
}

// jmapReply is a response object (RFC 8620, 3.4).
type jmapReply struct {
	Type      string `json:"@type,omitempty"`
	Responses []any  `json:"methodResponses"`
	State     string `json:"sessionState"`
	Request   string `json:"requestId,omitempty"`
}

// maxCalls bounds the calls of one request.
const maxCalls = 16

// jmapCall answers one request object.
func (in *session) jmapCall(who *principal, body []byte) (*jmapReply, *response) {
	var call struct {
		Using []string             `json:"using"`
		Calls [][3]json.RawMessage `json:"methodCalls"`
		ID    string               `json:"id"`
	}
	jmapProblem := func(kind, detail string) *response {
		a := jsonValue(struct {
			Type   string `json:"type"`
			Status int    `json:"status"`
			Detail string `json:"detail"`
		}{"urn:ietf:params:jmap:error:" + kind, 400, detail})
		a.status = 400
		a.fields[0].value = "application/problem+json"
		return a
	}
	if !json.Valid(body) {
		return nil, jmapProblem("notJSON", "Failed to parse JSON: expected value at line 1 column 1")
	}
	if err := json.Unmarshal(body, &call); err != nil || call.Calls == nil {
		return nil, jmapProblem("notRequest", "Invalid request")
	}
	if len(call.Calls) > maxCalls {
		return nil, jmapProblem("limit", "The request exceeded the maximum number of calls.")
	}
	reply := &jmapReply{Responses: []any{}, State: sessionState}
	for _, c := range call.Calls {
		var name, tag string
		json.Unmarshal(c[0], &name)
		json.Unmarshal(c[2], &tag)
		result, answer := in.jmapMethod(who, name, c[1])
		reply.Responses = append(reply.Responses, []any{result, answer, tag})
	}
	return reply, nil
}

func (in *session) jmapMethod(who *principal, name string, args json.RawMessage) (string, any) {
	fail := func(kind string) (string, any) { return "error", map[string]string{"type": kind} }
	if name == "Core/echo" {
		return name, args
	}
	var a struct {
		Account string `json:"accountId"`
	}
	if err := json.Unmarshal(args, &a); err != nil {
		return fail("invalidArguments")
	}
	owner := in.accountOf(a.Account)
	switch {
	case !slices.Contains([]string{"Mailbox/get", "Mailbox/query", "Email/query", "Email/get"}, name):
		return fail("unknownMethod")
	case !in.mayRead(who, a.Account):
		return fail("forbidden")
	case owner == nil:
		return fail("accountNotFound")
	}
	user := in.srv.store.User(owner.name)
	if user == nil {
		return fail("accountNotFound")
	}
	type box struct {
		ID     string  `json:"id"`
		Name   string  `json:"name"`
		Parent *string `json:"parentId"`
		Role   *string `json:"role"`
		Total  int     `json:"totalEmails"`
	}
	var boxes []box
	for i, b := range []pair{{mailbox.Inbox, "inbox"}, {"Deleted Items", "trash"}, {junkMail, "junk"}, {"Drafts", "drafts"}, {"Sent Items", "sent"}} {
		shown := b.key
		if shown == mailbox.Inbox {
			shown = "Inbox"
		}
		boxes = append(boxes, box{jmapID(i), shown, nil, &b.value, len(user.Messages(b.key))})
	}
	switch name {
	case "Mailbox/get":
		return name, struct {
			Account string   `json:"accountId"`
			State   string   `json:"state"`
			List    []box    `json:"list"`
			Missing []string `json:"notFound"`
		}{a.Account, "n", boxes, []string{}}
	case "Mailbox/query", "Email/query":
		ids := []string{}
		if name == "Mailbox/query" {
			for _, b := range boxes {
				ids = append(ids, b.ID)
			}
		} else {
			for _, m := range user.Messages(mailbox.Inbox) {
				ids = append(ids, jmapID(int(m.UID)))
			}
		}
		return name, struct {
			Account  string   `json:"accountId"`
			State    string   `json:"queryState"`
			Can      bool     `json:"canCalculateChanges"`
			Position int      `json:"position"`
			IDs      []string `json:"ids"`
		}{a.Account, "n", true, 0, ids}
	}
	return fail("invalidArguments") // Email/get: nothing asks the reference for messages over JMAP
}

// eventSource sends the first event that a client waits for (RFC 8620, 7.3).
func (in *session) eventSource(r *request) *response {
	ping, err := strconv.Atoi(r.query.Get("ping"))
	if err != nil || ping < 0 {
		ping = 0
	}
	wait := time.Duration(max(ping, 30)) * time.Second
	a := status(200).with("content-type", "text/event-stream").with("cache-control", "no-store")
	a.fields = append(a.fields, pair{"transfer-encoding", "chunked"})
	a.upgrade = func() {
		if ping > 0 {
			if in.c.Wait(wait) != nil {
				return
			}
			event := fmt.Sprintf("event: ping\ndata: {\"interval\": %d}\n\n", wait.Milliseconds())
			in.c.Line(strconv.FormatInt(int64(len(event)), 16))
			in.c.Line(event)
			in.c.Flush()
		}
		in.c.SetTimeout(10 * time.Minute)
		io.Copy(io.Discard, in.c.Reader())
	}
	return a
}

// webSocketGUID is RFC 6455's.
const webSocketGUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"

// webSocket makes a request one of JMAP over WebSocket (RFC 8887).
func (in *session) webSocket(r *request, who *principal) *response {
	connection, _ := r.field("connection")
	upgrade, _ := r.field("upgrade")
	key, _ := r.field("sec-websocket-key")
	version, _ := r.field("sec-websocket-version")
	if connection != "Upgrade" || upgrade != "websocket" || key == "" || version != "13" || in.srv.bugs.Has(bug.WebSocketRefused) {
		in.log(evBadParameters, field{"details", "WebSocket upgrade failed"})
		return badParameters("WebSocket upgrade failed")
	}
	sum := sha1.Sum([]byte(key + webSocketGUID))
	a := status(101).with("upgrade", "websocket").with("connection", "Upgrade").
		with("sec-websocket-accept", base64.StdEncoding.EncodeToString(sum[:])).with("sec-websocket-protocol", "jmap")
	a.upgrade = func() { in.webSocketFrames(who) }
	return a
}

// maxFrame bounds a message over WebSocket, in octets.
const maxFrame = 1 << 20

func (in *session) webSocketFrames(who *principal) {
	for {
		in.c.SetTimeout(10 * time.Minute)
		op, payload, err := readFrame(in.c.Reader())
		if err != nil {
			if in.isStopping() {
				in.writeFrame(8, []byte{0x03, 0xe9})
			}
			return
		}
		switch op {
		case 1:
			var kind struct {
				Type string `json:"@type"`
				ID   string `json:"id"`
			}
			json.Unmarshal(payload, &kind)
			if kind.Type == "WebSocketPushEnable" || kind.Type == "WebSocketPushDisable" || in.srv.bugs.Has(bug.WebSocketMute) {
				continue
			}
			reply, bad := in.jmapCall(who, payload)
			var out []byte
			if bad != nil || kind.Type != "Request" {
				out, _ = encode(map[string]any{"@type": "RequestError", "type": "urn:ietf:params:jmap:error:notRequest", "status": 400, "detail": "Invalid request"})
			} else {
				reply.Type, reply.Request = "Response", kind.ID
				out, _ = encode(reply)
			}
			if !in.writeFrame(1, out) {
				return
			}
			if in.srv.bugs.Has(bug.WebSocketOnce) {
				in.c.Silence()
				return
			}
		case 9:
			if !in.writeFrame(10, payload) {
				return
			}
		case 8:
			in.writeFrame(8, payload)
			return
		}
	}
}

// readFrame reads one unfragmented message of a client (RFC 6455, 5.2).
func readFrame(br *bufio.Reader) (op byte, payload []byte, err error) {
	var head [2]byte
	if _, err := io.ReadFull(br, head[:]); err != nil {
		return 0, nil, err
	}
	if head[0]&0xf0 != 0x80 || head[1]&0x80 == 0 {
		return 0, nil, fmt.Errorf("a frame that is fragmented, extended or not masked")
	}
	n := uint64(head[1] & 0x7f)
	switch n {
	case 126:
		var b [2]byte
		if _, err := io.ReadFull(br, b[:]); err != nil {
			return 0, nil, err
		}
		n = uint64(binary.BigEndian.Uint16(b[:]))
	case 127:
		var b [8]byte
		if _, err := io.ReadFull(br, b[:]); err != nil {
			return 0, nil, err
		}
		n = binary.BigEndian.Uint64(b[:])
	}
	if n > maxFrame {
		return 0, nil, fmt.Errorf("a frame of %d octets", n)
	}
	var mask [4]byte
	if _, err := io.ReadFull(br, mask[:]); err != nil {
		return 0, nil, err
	}
	payload = make([]byte, n)
	if _, err := io.ReadFull(br, payload); err != nil {
		return 0, nil, err
	}
	for i := range payload {
		payload[i] ^= mask[i&3]
	}
	return head[0] & 0x0f, payload, nil
}

func (in *session) writeFrame(op byte, payload []byte) bool {
	b := []byte{0x80 | op}
	switch n := len(payload); {
	case n < 126:
		b = append(b, byte(n))
	case n < 1<<16:
		b = binary.BigEndian.AppendUint16(append(b, 126), uint16(n))
	default:
		b = binary.BigEndian.AppendUint64(append(b, 127), uint64(n))
	}
	in.c.Write(append(b, payload...))
	return in.c.Flush() == nil
}

// davMethods are the methods of WebDAV.
var davMethods = strings.Fields("OPTIONS GET HEAD POST PUT DELETE COPY MOVE MKCALENDAR MKCOL PROPFIND PROPPATCH LOCK UNLOCK REPORT ACL")

// dav answers WebDAV as far as whoever looks for a collection goes: its
// address, whose it is, and whether one may see it.
func (in *session) dav(r *request, p []string) *response {
	known := len(p) > 1 && slices.Contains([]string{"cal", "card", "file", "pal", "itip"}, p[1])
	switch {
	case !slices.Contains(davMethods, r.method):
		return status(405)
	case !known:
		return status(404)
	case r.method == "OPTIONS":
		return status(200).
			with("dav", "1, 2, 3, access-control, extended-mkcol, calendar-access, calendar-auto-schedule, calendar-no-timezone, addressbook").
			with("allow", strings.Join(davMethods, ", "))
	}
	who, refusal := in.authorize(r, false)
	if refusal != nil {
		return refusal
	}
	owner := ""
	if len(p) > 2 {
		owner, _ = url.PathUnescape(p[2])
	}
	account := who
	if owner != "" {
		if account = in.srv.dir.named(owner); account == nil {
			return status(404)
		}
		if account.id != who.id && !in.readsAll(who) {
			return status(403)
		}
	}
	if r.method != "PROPFIND" {
		return status(403)
	}
	escaped := html.EscapeString((&url.URL{Path: account.name}).EscapedPath())
	path := html.EscapeString(r.path)
	var b bytes.Buffer
	fmt.Fprintf(&b, `<?xml version="1.0" encoding="utf-8"?><D:multistatus xmlns:D="DAV:" xmlns:A="urn:ietf:params:xml:ns:caldav" xmlns:B="urn:ietf:params:xml:ns:carddav">`+
		`<D:response><D:href>%s</D:href><D:propstat><D:prop><D:current-user-principal><D:href>/dav/pal/%s/</D:href></D:current-user-principal>`+
		`<D:owner><D:href>/dav/pal/%s/</D:href></D:owner><A:calendar-home-set><D:href>/dav/cal/%[2]s/</D:href></A:calendar-home-set>`+
		`<B:addressbook-home-set><D:href>/dav/card/%[2]s/</D:href></B:addressbook-home-set><D:resourcetype><D:collection/></D:resourcetype></D:prop>`+
		`<D:status>HTTP/1.1 200 OK</D:status></D:propstat></D:response></D:multistatus>`, path, escaped, escaped)
	a := content("application/xml; charset=utf-8", b.Bytes())
	a.status = 207
	return a
}
