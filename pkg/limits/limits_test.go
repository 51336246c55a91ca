package limits

import (
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/k8s-ovs/k8s-ovs/pkg/cniapi"
)

func TestFromAnnotations(t *testing.T) {
	for _, test := range []struct {
		a    map[string]string
		want Limits
		// refused must be in the error, comma-separated.
		refused string
	}{
		{nil, Limits{}, ""},
		{map[string]string{"other": "x"}, Limits{}, ""},
		{map[string]string{IngressRateAnnotation: "10M", EgressRateAnnotation: "1500k"}, Limits{Limit{Rate: 10_000_000}, Limit{Rate: 1_500_000}}, ""},
		{map[string]string{EgressRateAnnotation: "1Gi", EgressBurstAnnotation: "64Ki"}, Limits{Egress: Limit{1 << 30, 65536}}, ""},
		{map[string]string{IngressRateAnnotation: "1k", EgressRateAnnotation: "1P"}, Limits{Limit{Rate: MinRate}, Limit{Rate: MaxRate}}, ""},
		{map[string]string{IngressRateAnnotation: "999.5"}, Limits{Ingress: Limit{Rate: 1000}}, ""}, // as Kubernetes, which compares Value()
		{map[string]string{IngressRateAnnotation: "1e6", IngressBurstAnnotation: "1m"}, Limits{Ingress: Limit{1_000_000, 1}}, ""},
		{map[string]string{IngressRateAnnotation: "1M", IngressBurstAnnotation: "4294967295"}, Limits{Ingress: Limit{1_000_000, MaxBurst}}, ""},

		{map[string]string{IngressRateAnnotation: "", EgressRateAnnotation: "2M"}, Limits{Egress: Limit{Rate: 2_000_000}}, IngressRateAnnotation + ` is ""`},
		{map[string]string{IngressRateAnnotation: "fast", EgressRateAnnotation: "10MB"}, Limits{}, IngressRateAnnotation + ` is "fast",` + EgressRateAnnotation + ` is "10MB"`},
		{map[string]string{EgressRateAnnotation: "-1M"}, Limits{}, `"-1M",1k to 1P`},
		{map[string]string{EgressRateAnnotation: "0"}, Limits{}, `"0"`},
		{map[string]string{EgressRateAnnotation: "999"}, Limits{}, `"999",1000 to`},
		{map[string]string{EgressRateAnnotation: "1.001P"}, Limits{}, `"1.001P"`},
		{map[string]string{EgressRateAnnotation: "99999999999999999999E"}, Limits{}, `"99999999999999999999E"`},
		{map[string]string{EgressRateAnnotation: "1e999999999"}, Limits{}, `"1e999999999"`},
		{map[string]string{EgressRateAnnotation: "0." + strings.Repeat("7", 200_000)}, Limits{}, EgressRateAnnotation + ` is "0.` + strings.Repeat("7", maxLength-2) + `"...: not a quantity`},
		{map[string]string{EgressBurstAnnotation: "1k"}, Limits{}, EgressBurstAnnotation + ` is "1k",no ` + EgressRateAnnotation},
		{map[string]string{EgressRateAnnotation: "1M", EgressBurstAnnotation: "0"}, Limits{}, EgressBurstAnnotation + ` is "0",1 to 4294967295 bytes`},
		{map[string]string{EgressRateAnnotation: "1M", EgressBurstAnnotation: "4Gi"}, Limits{}, `"4Gi"`},
		{map[string]string{EgressRateAnnotation: "1M", EgressBurstAnnotation: "lots"}, Limits{}, `"lots",not a quantity`},
	} {
		got, err := FromAnnotations(test.a)
		if got != test.want || (err != nil) != (test.refused != "") {
			t.Errorf("%v: %+v, %v; want %+v", test.a, got, err, test.want)
			continue
		}
		for _, part := range strings.Split(test.refused, ",") {
			if err != nil && !strings.Contains(err.Error(), part) {
				t.Errorf("%v: error %q lacks %q", test.a, err, part)
			}
		}
	}
}

func TestFromCapability(t *testing.T) {
	for _, test := range []struct {
		b       *cniapi.Bandwidth
		want    Limits
		refused string
	}{
		{nil, Limits{}, ""},
		{&cniapi.Bandwidth{}, Limits{}, ""},
		{&cniapi.Bandwidth{IngressRate: 1000, IngressBurst: 8001, EgressRate: 2000, EgressBurst: math.MaxInt32 - 1}, Limits{Limit{1000, 1001}, Limit{2000, 1 << 28}}, ""},
		{&cniapi.Bandwidth{IngressRate: 1000, IngressBurst: math.MaxInt32, EgressRate: 2000, EgressBurst: math.MaxUint64}, Limits{Limit{Rate: 1000}, Limit{Rate: 2000}}, ""},
		{&cniapi.Bandwidth{IngressRate: 999, EgressRate: 2000}, Limits{Egress: Limit{Rate: 2000}}, "ingressRate is 999"},
		{&cniapi.Bandwidth{EgressRate: MaxRate + 1}, Limits{}, "egressRate is 1000000000000001"},
	} {
		got, err := FromCapability(test.b)
		if got != test.want || (err != nil) != (test.refused != "") || err != nil && !strings.Contains(err.Error(), test.refused) {
			t.Errorf("%+v: %+v, %v; want %+v, error with %q", test.b, got, err, test.want, test.refused)
		}
	}
}

// What Kubernetes takes for a quantity we take for the same one, and nothing else.
// Only what has no digit is none for us, and 0 for Kubernetes: refused either way.
func TestQuantityIsKubernetes(t *testing.T) {
	texts := []string{
		"", ".", "+", "-", "1.", ".5", "-.5", "+1.5k", "1..", "1.2.3", "--1", "1-", "1e", "1E", "1e+3", "1e-3", "1E3", "1ee3", "1e3k", "1.5e1",
		"0x10", "1_000", "١", "1 M", " 1", "1K", "1ki", "1mi", "1u", "1n", "1.0000000001", "007", "NaN", "inf", "1/2", "0.1m", "1Ke", "E", "e3", "k",
	}
	rng := rand.New(rand.NewPCG(1, 2))
	const alphabet = "0123456789.+-eEkKMGTPmunix"
	for range 20000 {
		var b strings.Builder
		for range 1 + rng.IntN(6) {
			b.WriteByte(alphabet[rng.IntN(len(alphabet))])
		}
		texts = append(texts, b.String())
	}
	for suffix := range suffixes {
		for range 200 {
			texts = append(texts, fmt.Sprintf("%d.%d%s", rng.IntN(1000), rng.IntN(1000), suffix))
		}
	}
	for _, text := range texts {
		want, wantErr := resource.ParseQuantity(text)
		got, err := parseQuantity(text)
		if err != nil && wantErr == nil && want.IsZero() {
			continue
		}
		if (err == nil) != (wantErr == nil) {
			t.Errorf("%q: %v, %v; Kubernetes says %s, %v", text, got, err, want.String(), wantErr)
			continue
		}
		// Kubernetes' end at 2^63-1.
		if err == nil && got.Sign() > 0 && got.IsInt64() && want.Value() != math.MaxInt64 && got.Int64() != want.Value() {
			t.Errorf("%q: %s; Kubernetes says %d", text, got, want.Value())
		}
	}
}
