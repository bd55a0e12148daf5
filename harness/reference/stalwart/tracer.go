package stalwart

import (
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/mailproof/mailproof/harness/reference/source/logbook"
)

// A level is how much a line of the log matters.
type level uint8

const (
	trace level = iota
	debug
	info
	warn
	failure
	disabled
)

func (l level) String() string {
	return [...]string{"TRACE", "DEBUG", "INFO", "WARN", "ERROR", "DISABLE"}[l]
}

func parseLevel(v string) (level, error) {
	switch strings.ToLower(v) {
	case "trace":
		return trace, nil
	case "debug":
		return debug, nil
	case "info":
		return info, nil
	case "warn":
		return warn, nil
	case "error":
		return failure, nil
	case "disable":
		return disabled, nil
	}
	return 0, saidf("Invalid log level: %s", v)
}

// An event is a kind of line: its name, its words and its level.
type event struct {
	name, text string
	level      level
}

// A field is one key of a line. Strings are quoted; a bare is not.
type field struct {
	key   string
	value any
}

type bare string

// A words value is a list of quoted strings.
type words []string

// appendFields writes fields as the text tracer does: quotes inside a string
// are not escaped.
func appendFields(b []byte, first bool, fields []field) []byte {
	for _, f := range fields {
		if !first {
			b = append(b, ", "...)
		}
		first = false
		b = append(b, f.key...)
		b = append(b, " = "...)
		b = appendValue(b, f.value)
	}
	return b
}

func appendValue(b []byte, v any) []byte {
	switch v := v.(type) {
	case string:
		b = append(b, '"')
		for i := 0; i < len(v); i++ {
			switch c := v[i]; c {
			case '\r':
				b = append(b, `\r`...)
			case '\n':
				b = append(b, `\n`...)
			case '\t':
				b = append(b, `\t`...)
			case '\\':
				b = append(b, `\\`...)
			default:
				b = append(b, c)
			}
		}
		return append(b, '"')
	case bare:
		return append(b, v...)
	case int:
		return strconv.AppendInt(b, int64(v), 10)
	case uint16:
		return strconv.AppendUint(b, uint64(v), 10)
	case uint64:
		return strconv.AppendUint(b, v, 10)
	case bool:
		return strconv.AppendBool(b, v)
	case netip.Addr:
		return append(b, v.String()...)
	case time.Duration:
		b = strconv.AppendInt(b, v.Milliseconds(), 10)
		return append(b, "ms"...)
	case time.Time:
		return v.UTC().AppendFormat(b, "2006-01-02T15:04:05Z")
	case words:
		b = append(b, '[')
		for i, w := range v {
			if i > 0 {
				b = append(b, ", "...)
			}
			b = appendValue(b, w)
		}
		return append(b, ']')
	}
	return append(b, "null"...)
}

// maxKept is how many lines of the log file the management API can show.
const maxKept = 1 << 14

// A tracer writes the lines of a level and above.
type tracer struct {
	level level
	off   bool
}

// tracing says which tracers there are, and which events have a level of
// their own.
type tracing struct {
	console, file tracer
	levels        map[string]level
}

// journal is the log of a server: what its console tracer writes and what its
// log tracer writes into files. It outlives restarts.
type journal struct {
	console, file *logbook.Book

	mu   sync.Mutex
	kept []string // of the file, oldest first
}

// write adds a line to the tracers that want it.
func (j *journal) write(t *tracing, now time.Time, e event, span string, fields []field) {
	lvl := e.level
	if own, ok := t.levels[e.name]; ok {
		lvl = own
	}
	console, file := !t.console.off && lvl >= t.console.level, !t.file.off && lvl >= t.file.level
	if lvl == disabled || !console && !file {
		return
	}
	b := make([]byte, 0, 256)
	b = now.UTC().AppendFormat(b, "2006-01-02T15:04:05Z ")
	b = append(b, lvl.String()...)
	b = append(b, ' ')
	b = append(b, e.text...)
	b = append(b, " ("...)
	b = append(b, e.name...)
	b = append(b, ") "...)
	b = append(b, span...)
	b = appendFields(b, span == "", fields)
	if console {
		j.console.Append(now, b)
	}
	if file {
		j.file.Append(now, b)
		j.mu.Lock()
		if len(j.kept) >= 2*maxKept {
			j.kept = append(j.kept[:0], j.kept[maxKept:]...)
		}
		j.kept = append(j.kept, string(b))
		j.mu.Unlock()
	}
}

// find returns lines of the file that hold filter, newest first, after offset
// of them, and how many were looked through.
func (j *journal) find(filter string, offset, limit int) (total int, lines []string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for i := len(j.kept) - 1; i >= 0; i-- {
		if !strings.Contains(j.kept[i], filter) {
			continue
		}
		total++
		if offset > 0 {
			offset--
			continue
		}
		lines = append(lines, j.kept[i])
		if len(lines) == limit {
			if i > 0 {
				total += limit
			}
			break
		}
	}
	return total, lines
}

func (j *journal) close() {
	j.console.Close()
	j.file.Close()
}

// The events of 0.15.5 that a source shows.
var (
	evStartup      = event{"server.startup", "Starting Stalwart Server v", info}
	evShutdown     = event{"server.shutdown", "Shutting down Stalwart Server v", info}
	evListenStart  = event{"network.listen-start", "Network listener started", info}
	evListenStop   = event{"network.listen-stop", "Network listener stopped", info}
	evProxyError   = event{"network.proxy-error", "Proxy protocol error", warn}
	evTimeout      = event{"network.timeout", "Network timeout", debug}
	evParseError   = event{"config.parse-error", "Configuration parse error", failure}
	evBuildError   = event{"config.build-error", "Configuration build error", failure}
	evMacroError   = event{"config.macro-error", "Configuration macro error", failure}
	evBuildWarning = event{"config.build-warning", "Configuration build warning", warn}

	evAuthSuccess   = event{"auth.success", "Authentication successful", info}
	evAuthFailed    = event{"auth.failed", "Authentication failed", debug}
	evAuthTooMany   = event{"auth.too-many-attempts", "Too many authentication attempts", warn}
	evAuthError     = event{"auth.error", "Authentication error", failure}
	evAuthBan       = event{"security.authentication-ban", "Banned due to authentication errors", info}
	evAbuseBan      = event{"security.abuse-ban", "Banned due to abuse", info}
	evScanBan       = event{"security.scan-ban", "Banned due to scan", info}
	evIPBlocked     = event{"security.ip-blocked", "Blocked IP address", info}
	evUnauthorized  = event{"security.unauthorized", "Unauthorized access", info}
	evTooManyConns  = event{"limit.concurrent-connection", "Concurrent connection limit reached", warn}
	evTooManyReqs   = event{"limit.too-many-requests", "Too many requests", warn}
	evTLSHandshake  = event{"tls.handshake", "TLS handshake", info}
	evTLSError      = event{"tls.handshake-error", "TLS handshake error", debug}
	evNotFound      = event{"resource.not-found", "Resource not found", debug}
	evBadParameters = event{"resource.bad-parameters", "Bad resource parameters", failure}

	evIMAPStart  = event{"imap.connection-start", "IMAP connection started", debug}
	evIMAPEnd    = event{"imap.connection-end", "IMAP connection ended", debug}
	evIMAPError  = event{"imap.error", "IMAP error occurred", debug}
	evIMAPLogout = event{"imap.logout", "IMAP LOGOUT command", debug}
	evIMAPID     = event{"imap.id", "IMAP ID command", debug}
	evIMAPCaps   = event{"imap.capabilities", "IMAP CAPABILITIES command", debug}
	evIMAPNoop   = event{"imap.noop", "IMAP NOOP command", debug}

	evPOP3Start    = event{"pop3.connection-start", "POP3 connection started", debug}
	evPOP3End      = event{"pop3.connection-end", "POP3 connection ended", debug}
	evPOP3Error    = event{"pop3.error", "POP3 error occurred", debug}
	evPOP3Quit     = event{"pop3.quit", "POP3 QUIT command", debug}
	evPOP3StartTLS = event{"pop3.start-tls", "POP3 STARTTLS command", debug}
	evPOP3Caps     = event{"pop3.capabilities", "POP3 CAPABILITIES command", debug}
	evPOP3Stat     = event{"pop3.stat", "POP3 STAT command", debug}
	evPOP3Noop     = event{"pop3.noop", "POP3 NOOP command", debug}

	evSieveStart    = event{"manage-sieve.connection-start", "ManageSieve connection started", debug}
	evSieveEnd      = event{"manage-sieve.connection-end", "ManageSieve connection ended", debug}
	evSieveError    = event{"manage-sieve.error", "ManageSieve error occurred", debug}
	evSieveCaps     = event{"manage-sieve.capabilities", "ManageSieve CAPABILITIES command", debug}
	evSieveStartTLS = event{"manage-sieve.start-tls", "ManageSieve STARTTLS command", debug}
	evSieveLogout   = event{"manage-sieve.logout", "ManageSieve LOGOUT command", debug}
	evSieveList     = event{"manage-sieve.list-scripts", "ManageSieve LIST scripts command", debug}

	evHTTPStart = event{"http.connection-start", "HTTP connection started", debug}
	evHTTPEnd   = event{"http.connection-end", "HTTP connection ended", debug}
	evHTTPURL   = event{"http.request-url", "HTTP request URL", debug}
	evHTTPError = event{"http.error", "HTTP error occurred", debug}
	evHTTPNoXFF = event{"http.x-forwarded-missing", "X-Forwarded-For header is missing", warn}

	evSMTPStart         = event{"smtp.connection-start", "SMTP connection started", debug}
	evSMTPEnd           = event{"smtp.connection-end", "SMTP connection ended", debug}
	evSMTPEhlo          = event{"smtp.ehlo", "SMTP EHLO command", info}
	evSMTPBadEhlo       = event{"smtp.invalid-ehlo", "Invalid EHLO command", info}
	evSMTPNoEhlo        = event{"smtp.did-not-say-ehlo", "Client did not say EHLO", debug}
	evSMTPEhloExpected  = event{"smtp.ehlo-expected", "EHLO command expected", debug}
	evSMTPStartTLS      = event{"smtp.start-tls", "SMTP STARTTLS command", debug}
	evSMTPTLSAlready    = event{"smtp.start-tls-already", "TLS already active", debug}
	evSMTPNoTLS         = event{"smtp.start-tls-unavailable", "STARTTLS unavailable", debug}
	evSMTPQuit          = event{"smtp.quit", "SMTP QUIT command", debug}
	evSMTPNoop          = event{"smtp.noop", "SMTP NOOP command", debug}
	evSMTPRset          = event{"smtp.rset", "SMTP RSET command", debug}
	evSMTPHelp          = event{"smtp.help", "SMTP HELP command", debug}
	evSMTPInvalid       = event{"smtp.invalid-command", "Invalid command", debug}
	evSMTPNotImpl       = event{"smtp.command-not-implemented", "Command not implemented", debug}
	evSMTPSyntax        = event{"smtp.syntax-error", "Syntax error", debug}
	evSMTPParameter     = event{"smtp.unsupported-parameter", "Unsupported parameter", debug}
	evSMTPBadParameter  = event{"smtp.invalid-parameter", "Invalid parameter", debug}
	evSMTPBadSender     = event{"smtp.invalid-sender-address", "Invalid sender address", debug}
	evSMTPBadRcpt       = event{"smtp.invalid-recipient-address", "Invalid recipient address", debug}
	evSMTPLongLine      = event{"smtp.request-too-large", "Request too large", info}
	evSMTPAuthNot       = event{"smtp.auth-not-allowed", "Authentication not allowed", info}
	evSMTPAuthMech      = event{"smtp.auth-mechanism-not-supported", "Auth mechanism not supported", info}
	evSMTPAlreadyAuth   = event{"smtp.already-authenticated", "Already authenticated", debug}
	evSMTPUnauth        = event{"smtp.mail-from-unauthenticated", "MAIL FROM without authentication", debug}
	evSMTPUnauthorized  = event{"smtp.mail-from-unauthorized", "MAIL FROM unauthorized", debug}
	evSMTPMultipleMail  = event{"smtp.multiple-mail-from", "Multiple MAIL FROM commands", debug}
	evSMTPMail          = event{"smtp.mail-from", "SMTP MAIL FROM command", info}
	evSMTPMailMissing   = event{"smtp.mail-from-missing", "MAIL FROM address missing", debug}
	evSMTPRcpt          = event{"smtp.rcpt-to", "SMTP RCPT TO command", info}
	evSMTPRcptDuplicate = event{"smtp.rcpt-to-duplicate", "Duplicate RCPT TO", debug}
	evSMTPRcptMissing   = event{"smtp.rcpt-to-missing", "RCPT TO address missing", debug}
	evSMTPGreylisted    = event{"smtp.rcpt-to-greylisted", "RCPT TO greylisted", info}
	evSMTPNoMailbox     = event{"smtp.mailbox-does-not-exist", "Mailbox does not exist", info}
	evSMTPNoRelay       = event{"smtp.relay-not-allowed", "Relay not allowed", info}
	evSMTPTooManyRcpt   = event{"smtp.too-many-recipients", "Too many recipients", info}
	evSMTPBadRcpts      = event{"smtp.too-many-invalid-rcpt", "Too many invalid recipients", info}
	evSMTPTooMany       = event{"smtp.too-many-messages", "Too many messages", info}
	evSMTPRate          = event{"smtp.rate-limit-exceeded", "Rate limit exceeded", info}
	evSMTPTransfer      = event{"smtp.transfer-limit-exceeded", "Transfer limit exceeded", info}
	evSMTPTooLarge      = event{"smtp.message-too-large", "Message too large", info}
	evSMTPLoop          = event{"smtp.loop-detected", "Mail loop detected", info}
	evSMTPDSN           = event{"smtp.dsn-disabled", "DSN extension disabled", debug}
	evSMTPVrfyOff       = event{"smtp.vrfy-disabled", "VRFY command disabled", info}
	evSMTPExpnOff       = event{"smtp.expn-disabled", "EXPN command disabled", info}
	evSPFEhloPass       = event{"smtp.spf-ehlo-pass", "SPF EHLO check passed", info}
	evSPFEhloFail       = event{"smtp.spf-ehlo-fail", "SPF EHLO check failed", info}
	evSPFFromPass       = event{"smtp.spf-from-pass", "SPF From check passed", info}
	evSPFFromFail       = event{"smtp.spf-from-fail", "SPF From check failed", info}
	evDKIMPass          = event{"smtp.dkim-pass", "DKIM verification passed", info}
	evDKIMFail          = event{"smtp.dkim-fail", "DKIM verification failed", info}
	evARCPass           = event{"smtp.arc-pass", "ARC verification passed", info}
	evDMARCPass         = event{"smtp.dmarc-pass", "DMARC check passed", info}
	evDMARCFail         = event{"smtp.dmarc-fail", "DMARC check failed", info}
	evIPRevPass         = event{"smtp.iprev-pass", "IPREV check passed", info}
	evIPRevFail         = event{"smtp.iprev-fail", "IPREV check failed", info}

	evQueued     = event{"queue.queue-message", "Queued message for delivery", info}
	evQueuedAuth = event{"queue.queue-message-authenticated", "Queued message submission for delivery", info}
	evIngested   = event{"message-ingest.ham", "Message ingested", info}
	evDuplicate  = event{"message-ingest.duplicate", "Skipping duplicate message", info}
)
