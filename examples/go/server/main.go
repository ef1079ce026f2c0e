// SPDX-License-Identifier: MIT

// An HTTPS server without crypto/tls: server PORT CHAIN KEY
package main

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"strconv"
	"syscall"

	"ssa.example/tlssocket"
)

func listen(port int) (net.Listener, error) {
	fd, err := tlssocket.New(map[int]string{
		tlssocket.CertificateChain: os.Args[2],
		tlssocket.PrivateKey:       os.Args[3],
	})
	if err != nil {
		return nil, err
	}
	if err := syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1); err != nil {
		return nil, fmt.Errorf("SO_REUSEADDR: %w", err)
	}
	if err := syscall.Bind(fd, &syscall.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		return nil, tlssocket.Explain(fd, "bind", err)
	}
	if err := syscall.Listen(fd, 128); err != nil {
		return nil, tlssocket.Explain(fd, "listen", err)
	}
	file := os.NewFile(uintptr(fd), "tls")
	defer file.Close()
	return net.FileListener(file)
}

func hello(answer http.ResponseWriter, request *http.Request) {
	fmt.Fprintf(answer, "Hello %s, you asked for %s.\n", request.RemoteAddr, request.URL)
}

func run() error {
	port, err := strconv.Atoi(os.Args[1])
	if err != nil {
		return err
	}
	listener, err := listen(port)
	if err != nil {
		return err
	}
	fmt.Printf("listening on port %d\n", listener.Addr().(*net.TCPAddr).Port)
	return http.Serve(listener, http.HandlerFunc(hello))
}

func main() {
	if len(os.Args) != 4 {
		fmt.Fprintln(os.Stderr, "usage: server PORT CHAIN KEY")
		os.Exit(2)
	}
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
