// SPDX-License-Identifier: MIT

// An HTTPS client without crypto/tls: client HOST PORT [AUTHORITIES]
//
// net/http speaks plain HTTP over a connection that the operating system has made a verified TLS connection.
package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"

	"ssa.example/tlssocket"
)

func dial(_ context.Context, _, hostPort string) (net.Conn, error) {
	host, _, err := net.SplitHostPort(hostPort)
	if err != nil {
		return nil, err
	}
	address, err := net.ResolveTCPAddr("tcp4", hostPort)
	if err != nil {
		return nil, err
	}
	options := map[int]string{tlssocket.RemoteHostname: host}
	if len(os.Args) > 3 {
		options[tlssocket.TrustedPeerCertificates] = os.Args[3]
	}
	fd, err := tlssocket.New(options)
	if err != nil {
		return nil, err
	}
	return tlssocket.Dial(fd, address)
}

func run() error {
	client := http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}
	response, err := client.Get("http://" + net.JoinHostPort(os.Args[1], os.Args[2]) + "/")
	if err != nil {
		return err
	}
	defer response.Body.Close()
	_, err = io.Copy(os.Stdout, response.Body)
	return err
}

func main() {
	if len(os.Args) < 3 || len(os.Args) > 4 {
		fmt.Fprintln(os.Stderr, "usage: client HOST PORT [AUTHORITIES]")
		os.Exit(2)
	}
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
