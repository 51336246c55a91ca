package limits

import (
	"errors"
	"strings"

	"k8s.io/apimachinery/pkg/api/resource"
)

// errNoQuantity is of text that is no quantity, or one that nobody needs.
var errNoQuantity = errors.New("not a quantity, such as 10M, 1500k or 1Gi")

const (
	// maxLength is that of a quantity, bytes: an annotation has room for 256 KiB, and to
	// compute with so many digits takes a second.
	maxLength = 64
	// maxExponent is how many digits an exponent may have. Kubernetes' parser computes with
	// the number in full: for 1e-9999999, which anybody may write into an annotation, it
	// takes seconds.
	maxExponent = 2
)

// parseQuantity reads a Kubernetes quantity.
func parseQuantity(s string) (resource.Quantity, error) {
	if len(s) > maxLength || exponent(s) > maxExponent {
		return resource.Quantity{}, errNoQuantity
	}
	q, err := resource.ParseQuantity(s)
	if err != nil {
		return resource.Quantity{}, errNoQuantity
	}
	return q, nil
}

// exponent is how many digits that of a quantity has, without zeros in front.
func exponent(s string) int {
	i := strings.LastIndexAny(s, "eE")
	if i < 0 {
		return 0
	}
	return len(strings.TrimLeft(s[i+1:], "+-0"))
}
