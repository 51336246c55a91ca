package cniapi

import (
	"context"
	"errors"
	"fmt"
)

// Codes of CNI errors (CNI specification 1.1.0, section "Error"; 50 and 51 from
// section "STATUS"). Codes below 100 mean what they say here and nothing else.
const (
	CodeIncompatibleVersion uint = 1
	CodeUnsupportedField    uint = 2
	// CodeUnknownContainer also tells the runtime that there is nothing to clean up.
	CodeUnknownContainer uint = 3
	CodeInvalidEnv       uint = 4
	CodeIO               uint = 5
	CodeDecode           uint = 6
	CodeInvalidConfig    uint = 7
	// CodeTryAgain: the condition is transient and the runtime should retry.
	CodeTryAgain uint = 11
	// CodeNotAvailable (STATUS): ADD cannot be served.
	CodeNotAvailable uint = 50
	// CodeLimited (STATUS): as CodeNotAvailable, and pods that exist may have
	// limited connectivity.
	CodeLimited uint = 51
	// CodeInternal is ours (100 and above are free); the reference library uses
	// the same number.
	CodeInternal uint = 999
)

// Error is a CNI error: what the runtime gets to see.
type Error struct {
	Code uint `json:"code"`
	// Msg names the object and what is wrong; Details say what to do about it.
	Msg     string `json:"msg"`
	Details string `json:"details,omitempty"`
	// cause is kept for errors.Is on the side that made the error.
	cause error
}

// Error is the message and the details.
func (e *Error) Error() string {
	if e.Details == "" {
		return e.Msg
	}
	return e.Msg + "; " + e.Details
}

// Unwrap is the error given to Errorf with %w, on the side that made it.
func (e *Error) Unwrap() error { return e.cause }

// Errorf makes an error with a code. %w works as in fmt.Errorf, with one error.
func Errorf(code uint, format string, args ...any) *Error {
	err := fmt.Errorf(format, args...)
	return &Error{Code: code, Msg: err.Error(), cause: errors.Unwrap(err)}
}

// WithDetails returns a copy of e with details: what to look at or do next.
func (e *Error) WithDetails(format string, args ...any) *Error {
	c := *e
	c.Details = fmt.Sprintf(format, args...)
	return &c
}

// AsError turns any error into one with a code: a wrapped *Error keeps its code
// and details, and the text around it; a deadline or cancellation is
// CodeTryAgain; anything else is CodeInternal. It is nil for nil.
func AsError(err error) *Error {
	if err == nil {
		return nil
	}
	var e *Error
	if errors.As(err, &e) {
		if error(e) == err {
			return e
		}
		return &Error{Code: e.Code, Msg: withoutDetails(err.Error(), e), Details: e.Details, cause: err}
	}
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		return Errorf(CodeTryAgain, "%w", err)
	}
	return Errorf(CodeInternal, "%w", err)
}

// withoutDetails takes e's details out of text that wraps it, where they stand
// at the end: they are sent on their own.
func withoutDetails(text string, e *Error) string {
	if full := e.Error(); e.Details != "" && len(text) > len(full) && text[len(text)-len(full):] == full {
		return text[:len(text)-len(full)] + e.Msg
	}
	return text
}
