package cniapi

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"time"

	"github.com/k8s-ovs/k8s-ovs/pkg/backoff"
	"github.com/k8s-ovs/k8s-ovs/pkg/faultpoint"
)

// Call sends one request to the agent that listens on socket and waits for its
// answer, for at most ClientTimeout or until ctx ends. The result is set for a
// successful ADD only. Every error is an *Error: the agent's own, or, when it
// cannot be reached or does not answer, CodeTryAgain (CodeNotAvailable for
// STATUS) with what to look at.
func Call(ctx context.Context, socket string, req Request) (*Result, error) {
	req.Version = Version
	if err := req.Validate(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, ClientTimeout)
	defer cancel()
	conn, err := dial(ctx, socket)
	if err != nil {
		return nil, unavailable(ctx, req.Command, socket, err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()

	if err := WriteRequest(conn, req); err != nil {
		if errors.Is(err, ErrTooLarge) {
			return nil, err
		}
		return nil, unavailable(ctx, req.Command, socket, err)
	}
	faultpoint.Here(string(req.Command), "asked")
	resp, err := ReadResponse(conn)
	faultpoint.Here(string(req.Command), "answer read")
	switch {
	case err != nil && AsError(err).Code == CodeDecode:
		return nil, Errorf(CodeInternal, "the agent on %s gave an answer that cannot be understood: %w", socket, err)
	case err != nil:
		return nil, unavailable(ctx, req.Command, socket, err)
	case resp.Error != nil:
		return nil, resp.Error
	case req.Command != Add:
		return nil, nil
	case resp.Result == nil:
		return nil, Errorf(CodeInternal, "the agent on %s answered ADD without a result", socket)
	}
	if err := resp.Result.Validate(); err != nil {
		return nil, Errorf(CodeInternal, "the agent on %s: %w", socket, err)
	}
	return resp.Result, nil
}

// dial connects to socket. When the agent's queue of connections is full the
// kernel says EAGAIN at once (unix(7)); that passes, so it is waited out.
//
// Blocking system calls instead of package net were tried, to spare the plugin
// the start of the poller: the binary shrinks by a tenth, ADD takes as long.
func dial(ctx context.Context, socket string) (net.Conn, error) {
	var d net.Dialer
	pauses := backoff.Pauses{First: time.Millisecond, Last: 100 * time.Millisecond}
	for {
		conn, err := d.DialContext(ctx, "unix", socket)
		if err == nil || !errors.Is(err, syscall.EAGAIN) {
			return conn, err
		}
		if !pauses.Wait(ctx) {
			return nil, err
		}
	}
}

// whatToLookAt goes with every error about an agent that is not there.
const whatToLookAt = "is k8s-ovs-agent running on this node? Look at its log " +
	"(kubectl -n kube-system get pods -o wide, or journalctl -u k8s-ovs-agent); the call can be repeated"

// unavailable says in the runtime's words why there was no answer.
func unavailable(ctx context.Context, cmd Command, socket string, err error) *Error {
	var late interface{ Timeout() bool }
	switch {
	case ctx.Err() != nil, errors.As(err, &late) && late.Timeout(): // a dialer may see the time run out before ctx says so
		err = errors.New("no answer in time")
	case errors.Is(err, os.ErrNotExist):
		err = errors.New("there is no such socket")
	case errors.Is(err, syscall.ECONNREFUSED):
		err = errors.New("nobody listens on it")
	case errors.Is(err, os.ErrPermission):
		err = errors.New("permission denied; only root may use it")
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		err = errors.New("it closed the connection before its answer; it was stopped or restarted")
	}
	code := CodeTryAgain
	if cmd == Status {
		code = CodeNotAvailable
	}
	return Errorf(code, "the k8s-ovs agent is not answering on %s: %w", socket, err).WithDetails(whatToLookAt)
}
