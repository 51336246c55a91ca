package backoff

import "testing"

func TestPause(t *testing.T) {
	p := New()
	last := p.Take()
	for range 20 {
		d := p.Take()
		if d < last || d > Max {
			t.Fatalf("%v after %v", d, last)
		}
		last = d
	}
	if last != Max || !p.Longest() {
		t.Errorf("grows to %v, not %v", last, Max)
	}
	p.Reset()
	if d := p.Take(); d != First {
		t.Errorf("%v after reset", d)
	}
}
