//go:build !faultpoints

package faultpoint

// Here is a place at which a test may kill the program: where names what was changed, what
// which of several; what may be empty.
func Here(where, what string) {}
