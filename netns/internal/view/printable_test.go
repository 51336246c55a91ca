package view

import (
	"bytes"
	"io"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"unicode"

	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// hostile clears a screen, and would forge a row.
const hostile = "\x1b[2J\nn2 \u009b8m\u202e\xff"

// fill makes every string text in all that v leads to, with one element in each list.
func fill(v reflect.Value, text string) {
	switch v.Kind() {
	case reflect.String:
		v.SetString(text)
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem(), text)
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		fill(v.Index(0), text)
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Field(i).CanSet() {
				fill(v.Field(i), text)
			}
		}
	case reflect.Bool:
		v.SetBool(true)
	}
}

// harmless compares what is written of hostile text with what is written of harmless.
func harmless[T any](t *testing.T, write func(io.Writer, T) error) {
	t.Helper()
	var v, plain T
	fill(reflect.ValueOf(&v).Elem(), hostile)
	fill(reflect.ValueOf(&plain).Elem(), "n2")
	var got, want bytes.Buffer
	if err := write(&got, v); err != nil {
		t.Fatal(err)
	}
	if err := write(&want, plain); err != nil {
		t.Fatal(err)
	}
	lines := func(b bytes.Buffer) int { return strings.Count(b.String(), "\n") }
	if lines(got) != lines(want) {
		t.Errorf("%T: %d lines where there are %d with harmless text:\n%q", v, lines(got), lines(want), got.String())
	}
	noControls(t, got.String())
}

func noControls(t *testing.T, text string) {
	t.Helper()
	for _, r := range text {
		if r != '\n' && !unicode.IsPrint(r) {
			t.Errorf("%q has %q", text, r)
			return
		}
	}
}

// TestHostileText: no text of a record rules the operator's terminal, or adds lines.
func TestHostileText(t *testing.T) {
	harmless(t, WriteNamespaces)
	harmless(t, WriteNodes)
	harmless(t, WriteDetail)
	harmless(t, WritePolicy)
	harmless(t, WriteClusterPolicy)
	harmless(t, WriteConfirmation)
	harmless(t, WriteResult)
	harmless(t, func(w io.Writer, gains []string) error { return WriteOpened(w, gains[0], gains) })
	harmless(t, func(w io.Writer, r Result) error { r.Result = WouldChange; return WriteResult(w, r) })
}

// TestHostileNode: a node's own reports name no other node in the table, nor hide it.
func TestHostileNode(t *testing.T) {
	ip := netip.MustParseAddr("192.0.2.1")
	s := topology.Snapshot{Nodes: map[netip.Addr]topology.Node{ip: {Host: "n1", HostIP: ip}}}
	statuses := Statuses{ip: {Host: hostile, HostIP: ip, Datapath: hostile, Message: hostile, Version: hostile}}
	mtus := topology.MTUs{Nodes: map[netip.Addr]topology.NodeMTU{ip: {Host: hostile, HostIP: ip, Carries: 1450, Sends: 1450, Receives: 1450, Limit: hostile, BlackHoles: hostile}}}
	var got bytes.Buffer
	if err := WriteNodes(&got, Nodes(s, statuses, mtus, 1)); err != nil {
		t.Fatal(err)
	}
	if strings.Count(got.String(), "\n") != 2 {
		t.Errorf("a node has more than its own line:\n%s", got.String())
	}
	noControls(t, got.String())
}

func TestPrintable(t *testing.T) {
	for text, want := range map[string]string{
		"n1: große MTU, 日本":        "n1: große MTU, 日本",
		"\x1b[2J\nn2":              "\uFFFD[2J n2",
		"a\tb\u00a0c\r\n":          "a b c  ",
		"\u009b8m\u202e\xff\u200b": "\uFFFD8m\uFFFD\uFFFD\uFFFD",
	} {
		if got := Printable(text); got != want {
			t.Errorf("Printable(%q) is %q, want %q", text, got, want)
		}
	}
}
