package limits

import (
	"errors"
	"math"
	"strings"
	"testing"

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

// TestQuantity: what Kubernetes takes for a quantity is the same one, unless only to compute
// with it takes all day.
func TestQuantity(t *testing.T) {
	const lowest, highest = 2, 1e18
	for text, want := range map[string]uint64{
		"10M": 10_000_000, "1.5k": 1500, "+.5Ki": 512, "1e3": 1000, "1E3": 1000, "1E": 1e18, "1e18": 1e18, "1e0018": 1e18, "2": 2, "1.0000000001": 2,
	} {
		if got, err := within(text, lowest, highest); err != nil || got != want {
			t.Errorf("%q: %d, %v; want %d", text, got, err, want)
		}
	}
	for _, text := range []string{
		"0", "1", "1e-3", "1n", "-5", "-1e99", "1.5E", "8Ei", "16Ei", "1e99", "1000000000000000000.1",
		"18446744073709551626", "18446744073709551626.5", // 2^64+10
		strings.Repeat("9", maxLength),
	} {
		if got, err := within(text, lowest, highest); err == nil || errors.Is(err, errNoQuantity) {
			t.Errorf("%q: %d, %v; want an error that says it is out of range", text, got, err)
		}
	}
	for _, text := range []string{
		"", "fast", "10MB", "1ki", "1K", "1 M", " 1", "1_000", "0x10", "NaN", "1/2", "1e", "1e3k",
		// These are quantities: the last one takes Kubernetes' parser seconds.
		strings.Repeat("9", maxLength+1), "1e999999999", "1e100", "1e-100", "1E+100", "1e-9999999",
	} {
		if got, err := within(text, lowest, highest); !errors.Is(err, errNoQuantity) {
			t.Errorf("%q: %d, %v; want %v", text, got, err, errNoQuantity)
		}
	}
}
