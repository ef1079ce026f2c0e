// SPDX-License-Identifier: MIT

// Package tlssocket has the few system calls that Go's standard library has no words for.
package tlssocket

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"syscall"
	"unsafe"
)

// From in_tls.h.
const (
	Protocol                = 205 // IPPROTO_TLS
	RemoteHostname          = 85
	TrustedPeerCertificates = 87
	CertificateChain        = 88
	PrivateKey              = 89
	ChosenCipher            = 98
	lastError               = 100
)

// New makes a TLS socket for IPv4. Each of the options is a number and a text.
func New(options map[int]string) (int, error) {
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, Protocol)
	if err != nil {
		return -1, fmt.Errorf("socket: %w", err)
	}
	for option, value := range options {
		if err := syscall.SetsockoptString(fd, Protocol, option, value); err != nil {
			err = Explain(fd, fmt.Sprintf("TLS option %d", option), err)
			syscall.Close(fd)
			return -1, err
		}
	}
	return fd, nil
}

// Dial connects a new socket to an IPv4 address. It returns when the server has proved its identity.
func Dial(fd int, address *net.TCPAddr) (net.Conn, error) {
	remote := &syscall.SockaddrInet4{Port: address.Port}
	copy(remote.Addr[:], address.IP.To4())
	err := syscall.Connect(fd, remote)
	for err == syscall.EINTR { // the runtime's own signals: the call goes on where it was
		err = syscall.Connect(fd, remote)
	}
	if err != nil {
		err = Explain(fd, "connect", err)
		syscall.Close(fd)
		return nil, err
	}
	return FileConn(fd)
}

// FileConn makes Go's own connection of a descriptor, which it takes over.
func FileConn(fd int) (net.Conn, error) {
	file := os.NewFile(uintptr(fd), "tls")
	defer file.Close()
	return net.FileConn(file)
}

// Text reads an option that is a string.
func Text(fd, option int) (string, error) {
	var buffer [1024]byte
	size := uint32(len(buffer))
	_, _, errno := syscall.Syscall6(syscall.SYS_GETSOCKOPT, uintptr(fd), Protocol, uintptr(option),
		uintptr(unsafe.Pointer(&buffer[0])), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return "", errno
	}
	return string(bytes.TrimRight(buffer[:size], "\x00")), nil
}

// Explain adds to an error what TLS_ERROR says.
func Explain(fd int, what string, err error) error {
	why, unknown := Text(fd, lastError)
	if unknown != nil || why == "" {
		return fmt.Errorf("%s: %w", what, err)
	}
	return fmt.Errorf("%s: %w\nTLS_ERROR: %s", what, err, why)
}
