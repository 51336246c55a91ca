package near

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestDistance(t *testing.T) {
	tests := []struct {
		a, b string
		want int
	}{
		{"", "", 0},
		{"", "abc", 3},
		{"abc", "", 3},
		{"same", "same", 0},
		{"helloworld1", "helloworld2", 1}, // replaced
		{"helloword1", "helloworld1", 1},  // dropped
		{"helllo", "hello", 1},            // inserted
		{"hlelo", "hello", 1},             // swapped
		{"abcdef", "badcfe", 3},           // swapped three times
		{"kitten", "sitting", 3},
		{"ünï", "uni", 2}, // characters, not bytes
	}
	for _, tt := range tests {
		if got := distance(tt.a, tt.b); got != tt.want {
			t.Errorf("distance(%q, %q) = %d, want %d", tt.a, tt.b, got, tt.want)
		}
		if got := distance(tt.b, tt.a); got != tt.want {
			t.Errorf("distance(%q, %q) = %d, want %d", tt.b, tt.a, got, tt.want)
		}
	}
}

func TestNames(t *testing.T) {
	all := []string{"web", "web-staging", "web-prod", "db", "helloworld3", "helloworld1", "helloworld2", "kube-system"}
	tests := []struct {
		name   string
		want   []string
		phrase string
	}{
		{"wbe", []string{"web"}, `; did you mean "web"?`},
		{"helloworl1", []string{"helloworld1", "helloworld2", "helloworld3"}, `; did you mean "helloworld1", "helloworld2" or "helloworld3"?`},
		{"kubesystem", []string{"kube-system"}, `; did you mean "kube-system"?`},
		{"web-", []string{"web", "web-prod", "web-staging"}, `; did you mean "web", "web-prod" or "web-staging"?`},
		{"web-s", []string{"web-staging"}, `; did you mean "web-staging"?`},
		{"zzz", nil, ""},
		{"", nil, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, Names(tt.name, all)); diff != "" {
				t.Errorf("Names (-want +got):\n%s", diff)
			}
			if got := Phrase(tt.name, all); got != tt.phrase {
				t.Errorf("Phrase = %q, want %q", got, tt.phrase)
			}
		})
	}
}
