module github.com/mailproof/mailproof

go 1.26
