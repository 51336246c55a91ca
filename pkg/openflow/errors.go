package openflow

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// ErrClosed is what calls on a connection end with after [Conn.Close].
var ErrClosed = errors.New("OpenFlow connection is closed")

// ErrUnresponsive is why a connection ended whose switch stopped answering.
var ErrUnresponsive = errors.New("ovs-vswitchd does not answer")

// errorID is an error's type and code.
type errorID struct{ typ, code uint16 }

// SwitchError is an error that the switch answered with (OpenFlow 1.4, section 7.5.4).
type SwitchError struct {
	// Type and Code, as in the specification. For Open vSwitch's own errors
	// Type is 0xffff and Code the experimenter type.
	Type, Code uint16
}

// Name is Open vSwitch's name of the error, such as "OFPBAC_BAD_OUT_PORT".
func (e *SwitchError) Name() string {
	if e.Type == actExperimenter {
		if n, ok := niciraErrorNames[e.Code]; ok {
			return n
		}
	} else if n, ok := errorNames[errorID{e.Type, e.Code}]; ok {
		return n
	}
	return "unknown error"
}

// Is reports that an error about a message that the switch does not know is
// [errors.ErrUnsupported].
func (e *SwitchError) Is(target error) bool {
	switch (errorID{e.Type, e.Code}) {
	case errorID{1, 1}, errorID{1, 2}, errorID{1, 3}, errorID{1, 4}: // OFPBRC_BAD_TYPE, _STAT, _VENDOR, _SUBTYPE
		return target == errors.ErrUnsupported
	}
	return false
}

// Error names type and code, as name and as numbers.
func (e *SwitchError) Error() string {
	return fmt.Sprintf("the switch refuses it: %s (type %d, code %d)", e.Name(), e.Type, e.Code)
}

// ModError says which part of a bundle the switch did not accept.
type ModError struct {
	// Index of the part in what [Conn.Commit] was given.
	Index int
	Mod   Mod
	// Err is why: a *[SwitchError], or what is wrong with the part itself.
	Err error
}

// Error has the text of the part.
func (e *ModError) Error() string {
	return fmt.Sprintf("bundle rejected, nothing applied: part %d, %s: %v", e.Index, e.Mod, e.Err)
}

// Unwrap is why.
func (e *ModError) Unwrap() error { return e.Err }

// decodeError reads the body of an OFPT_ERROR.
func decodeError(b []byte) (*SwitchError, error) {
	if len(b) < 4 {
		return nil, fmt.Errorf("error message: %w", errShort)
	}
	return &SwitchError{Type: binary.BigEndian.Uint16(b), Code: binary.BigEndian.Uint16(b[2:])}, nil
}
