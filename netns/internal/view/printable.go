package view

import (
	"fmt"
	"io"
	"strings"
	"unicode"
)

// Printable is text as it may be shown on a terminal. Records have text that any node may have
// written: an escape sequence in it would move the cursor or hide lines, a line break would forge
// some. White space of any kind becomes a space, all else that [unicode.IsPrint] refuses, and
// what is no UTF-8, becomes U+FFFD.
func Printable(text string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case unicode.IsPrint(r):
			return r
		case unicode.IsSpace(r):
			return ' '
		}
		return unicode.ReplacementChar
	}, text)
}

// WriteLine writes text to w as one line that is [Printable].
func WriteLine(w io.Writer, text string) error {
	_, err := fmt.Fprintln(w, Printable(text))
	return err
}
