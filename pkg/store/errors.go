package store

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// What went wrong, for errors.Is. Every error of this package that concerns
// etcd is one of them.
var (
	// ErrConflict: the record is not, or no longer, what the caller read.
	ErrConflict = errors.New("the record was changed by someone else")
	// ErrNotFound: there is no such record.
	ErrNotFound = errors.New("not found")
	// ErrNoConfig: there is no network configuration yet. It is an ErrNotFound too.
	ErrNoConfig = fmt.Errorf("no network configuration: is k8s-ovs-controller running, with the same etcd and --etcd-prefix? (%w)", ErrNotFound)
	// ErrInvalid: the record, or the request, is not well formed.
	ErrInvalid = errors.New("invalid")
	// ErrDeposed: another controller leads, or may lead; nothing was written.
	ErrDeposed = errors.New("no longer the leader")
	// ErrUnavailable: etcd did not answer, or could not.
	ErrUnavailable = errors.New("etcd is unavailable")
	// ErrDenied: etcd refused the user or the certificate.
	ErrDenied = errors.New("etcd refuses access")
	// ErrCredentials: no connection can be begun, as the certificates or the key are missing or
	// cannot be read.
	ErrCredentials = errors.New("etcd cannot be reached with the certificates and the key that there are")

	errClosed = errors.New("the store is closed")
)

// Error is a failed operation.
type Error struct {
	// Op says what was being done to which object.
	Op string
	// Kind is one of this package's Err values.
	Kind error
	// Endpoints are those tried, where that matters.
	Endpoints []string
	// Cause has the details; may be nil.
	Cause error
}

// Error is one line: what, why, and where.
func (e *Error) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %v", e.Op, e.Kind)
	if len(e.Endpoints) > 0 {
		fmt.Fprintf(&b, " (endpoints tried: %s)", strings.Join(e.Endpoints, ", "))
	}
	if e.Cause != nil {
		fmt.Fprintf(&b, ": %s", readable(e.Cause))
	}
	return b.String()
}

// Unwrap makes errors.Is see both the kind and the cause.
func (e *Error) Unwrap() []error {
	if e.Cause == nil {
		return []error{e.Kind}
	}
	return []error{e.Kind, e.Cause}
}

// classify turns an error of the etcd library into an *Error. A ctx that the
// caller ended stays recognisable as such.
func (s *Store) classify(ctx context.Context, op string, err error) error {
	if err == nil {
		return nil
	}
	if ctx.Err() != nil && errors.Is(ctx.Err(), context.Canceled) {
		return fmt.Errorf("%s: %w", op, ctx.Err())
	}
	var ours *Error
	if errors.As(err, &ours) {
		return err
	}
	e := &Error{Op: op, Kind: ErrUnavailable, Endpoints: s.cfg.Endpoints, Cause: err}
	switch {
	case errors.Is(err, errClosed):
		e.Endpoints = nil
	case denied(err):
		e.Kind = ErrDenied
	}
	s.health.failed(e)
	return e
}

// dropped is what etcd says of a request that raft has not taken, while the leader moves. etcd has
// no error of its own for it, so only the text tells it from others.
const dropped = "raft proposal dropped"

// untaken reports whether etcd has surely done nothing about a request, for want of a leader, and
// may take it a moment later.
func untaken(err error) bool {
	if err == nil {
		return false
	}
	said := rpctypes.Error(err)
	return errors.Is(said, rpctypes.ErrNoLeader) || errors.Is(said, rpctypes.ErrLeaderChanged) || status.Convert(err).Message() == dropped
}

// Passing reports whether etcd was away, or without a leader, when it was asked: the same may succeed
// when it is asked again. Whether it has done what it was asked for is not known.
func Passing(err error) bool {
	var e *Error
	if !errors.As(err, &e) || e.Kind != ErrUnavailable || e.Cause == nil {
		return false
	}
	code := status.Code(e.Cause)
	var said rpctypes.EtcdError
	if errors.As(rpctypes.Error(e.Cause), &said) {
		code = said.Code()
	}
	return code == codes.Unavailable || code == codes.DeadlineExceeded || untaken(e.Cause) || errors.Is(e.Cause, context.DeadlineExceeded)
}

func denied(err error) bool {
	for _, d := range []error{
		rpctypes.ErrAuthFailed, rpctypes.ErrPermissionDenied, rpctypes.ErrUserEmpty, rpctypes.ErrInvalidAuthToken,
		rpctypes.ErrAuthNotEnabled, rpctypes.ErrRoleNotGranted, rpctypes.ErrPermissionNotGranted,
		rpctypes.ErrInvalidAuthMgmt,
	} {
		if errors.Is(rpctypes.Error(err), d) || errors.Is(err, d) {
			return true
		}
	}
	switch status.Code(err) {
	case codes.Unauthenticated, codes.PermissionDenied:
		return true
	}
	return false
}

// tooLarge is what etcd said of a transaction that it refused for its size, and of which it
// did nothing; nil where err is something else.
func tooLarge(err error) error {
	var e *Error
	if !errors.As(err, &e) || e.Cause == nil {
		return nil
	}
	if said := rpctypes.Error(e.Cause); errors.Is(said, rpctypes.ErrTooManyOps) || errors.Is(said, rpctypes.ErrRequestTooLarge) {
		return e.Cause
	}
	return nil
}

// readable cuts gRPC's wrapping off an error's text: what a dial, TLS or etcd
// said last is the cause.
func readable(err error) string {
	if errors.Is(rpctypes.Error(err), rpctypes.ErrNoLeader) || errors.Is(err, rpctypes.ErrNoLeader) {
		return "etcd has no leader: most of its members are away, or they are electing one"
	}
	if errors.Is(rpctypes.Error(err), rpctypes.ErrNoSpace) {
		return "database space exceeded: etcd takes no changes before it has room (its quota or its disk; where it runs in k8s-ovs-controller, the log of that says which, and what to do)"
	}
	text := err.Error()
	if st, ok := status.FromError(err); ok && st.Code() != codes.OK && st.Message() != "" {
		text = st.Message()
	}
	for {
		_, inner, ok := strings.Cut(text, "desc = ")
		if !ok || inner == "" {
			break
		}
		text = inner
	}
	// gRPC quotes the text of a failed dial.
	if strings.HasPrefix(text, `"`) {
		text = strings.Trim(text, `"`)
	}
	text = strings.TrimPrefix(text, "transport: ")
	// gRPC's words for a connection that was taken and ended before a word was said. It has
	// no error of its own for that: by here the cause is only text.
	// With TLS it is the handshake that ends so.
	ended := strings.Contains(text, "error reading server preface") ||
		strings.Contains(text, "authentication handshake failed") && (strings.HasSuffix(text, "EOF") || strings.Contains(text, "connection reset by peer"))
	if ended {
		text = "connections are taken and ended at once: " + nobodyBehind + " (" + text + ")"
	}
	return text
}
