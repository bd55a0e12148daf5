module github.com/mailproof/mailproof

go 1.26.0

require (
	github.com/pires/go-proxyproto v0.15.0 // indirect
	golang.org/x/tools v0.52.0 // indirect
	gotest.tools/v3 v3.5.2 // indirect
)
