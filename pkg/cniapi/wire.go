package cniapi

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// ErrTooLarge is wrapped by errors about messages of more than MaxMessage bytes.
var ErrTooLarge = fmt.Errorf("message is larger than %d bytes", MaxMessage)

// ReadRequest reads one request. It does not validate it. The error is io.EOF
// when the other side closed without saying anything, wraps ErrTooLarge when the
// request is too large, and otherwise tells decoding from reading by its
// [Error] code.
func ReadRequest(r io.Reader) (Request, error) {
	var req Request
	err := read(r, &req)
	return req, err
}

// WriteRequest writes one request, stamped with this package's version. It
// writes nothing if the request is too large.
func WriteRequest(w io.Writer, req Request) error {
	req.Version = Version
	return write(w, req)
}

// ReadResponse reads one response; errors as for ReadRequest.
func ReadResponse(r io.Reader) (Response, error) {
	var resp Response
	err := read(r, &resp)
	return resp, err
}

// WriteResponse writes one response, stamped with this package's version.
func WriteResponse(w io.Writer, resp Response) error {
	resp.Version = Version
	return write(w, resp)
}

// resultFields are those of a Result that are on the wire as they are.
type resultFields Result

// wireResult is a result on the wire: one address as ever, a list of them beside it where
// there are two.
type wireResult struct {
	resultFields
	IP
	IPs []IP `json:"ips,omitempty"`
}

// MarshalJSON writes the result so that a plugin of an earlier release finds its address.
func (r Result) MarshalJSON() ([]byte, error) {
	w := wireResult{resultFields: resultFields(r), IPs: topology.Listed(r.IPs)}
	if len(r.IPs) > 0 {
		w.IP = r.IPs[0]
	}
	return json.Marshal(w)
}

// UnmarshalJSON reads the result of an agent of any release.
func (r *Result) UnmarshalJSON(data []byte) error {
	var w wireResult
	if err := json.Unmarshal(data, &w); err != nil {
		return err
	}
	ips, err := topology.Unlisted(w.IP, w.IPs)
	if err != nil {
		return fmt.Errorf("addresses of the result: %w", err)
	}
	*r = Result(w.resultFields)
	r.IPs = ips
	return nil
}

func read(r io.Reader, v any) error {
	limited := &io.LimitedReader{R: r, N: MaxMessage}
	err := json.NewDecoder(limited).Decode(v)
	switch {
	case err == nil:
		return nil
	case limited.N <= 0:
		return Errorf(CodeDecode, "%w", ErrTooLarge)
	case errors.Is(err, io.EOF):
		return io.EOF
	case errors.Is(err, io.ErrUnexpectedEOF):
		return Errorf(CodeIO, "message ends in the middle: %w", err)
	case isDecodeError(err):
		return Errorf(CodeDecode, "message is not valid JSON of its form: %w", err)
	}
	return Errorf(CodeIO, "reading a message: %w", err)
}

func write(w io.Writer, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return Errorf(CodeInternal, "encoding a message: %w", err)
	}
	if len(data)+1 > MaxMessage {
		return Errorf(CodeInternal, "%w", ErrTooLarge)
	}
	if _, err := w.Write(append(data, '\n')); err != nil {
		return Errorf(CodeIO, "writing a message: %w", err)
	}
	return nil
}

// isDecodeError tells the decoder's own complaints from those of the reader,
// which are all net.Error, os or syscall errors here.
func isDecodeError(err error) bool {
	var timeout interface{ Timeout() bool }
	return !errors.As(err, &timeout)
}
