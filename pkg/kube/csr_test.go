package kube_test

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	certificatesv1 "k8s.io/api/certificates/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/k8s-ovs/k8s-ovs/pkg/kube"
	"github.com/k8s-ovs/k8s-ovs/pkg/pki"
	"github.com/k8s-ovs/k8s-ovs/test/kubetest"
)

// aRequest is a certificate request, PEM.
func aRequest(t *testing.T, user string) []byte {
	t.Helper()
	key, _, err := pki.NewKey()
	must(t, err)
	csr, err := pki.Request(key, user)
	must(t, err)
	return csr
}

type reply struct {
	certPEM []byte
	err     error
}

// certificates is a client that asks, as who, beside one that answers.
type certificates struct {
	t        *testing.T
	ctx      context.Context
	client   *kube.Client
	api      *kubetest.Server
	requests <-chan map[string]kube.SigningRequest
}

func newCertificates(t *testing.T) *certificates {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	c := &certificates{t: t, ctx: ctx, api: kubetest.NewServer()}
	c.api.Who = func(*http.Request) (string, map[string][]string) { return "me", map[string][]string{"on": {"n1"}} }
	c.client = kubetest.Open(t, c.api)
	c.requests = c.client.WatchSigningRequests(ctx, "a/signer")
	return c
}

func (c *certificates) ask(csr []byte) <-chan reply {
	out := make(chan reply, 1)
	go func() {
		certPEM, err := c.client.RequestCertificate(c.ctx, "x-", csr, "a/signer", time.Hour)
		out <- reply{certPEM, err}
	}()
	return out
}

// told waits until the one request that there is is one that cond is true of.
func (c *certificates) told(cond func(kube.SigningRequest) bool) kube.SigningRequest {
	c.t.Helper()
	for all := range c.requests {
		for _, r := range all {
			if len(all) == 1 && cond(r) {
				return r
			}
		}
	}
	c.t.Fatal("not told")
	panic("unreachable")
}

func open(r kube.SigningRequest) bool     { return !r.Finished }
func finished(r kube.SigningRequest) bool { return r.Finished }

func TestRequestIsSigned(t *testing.T) {
	c := newCertificates(t)
	must(t, c.api.Put(&certificatesv1.CertificateSigningRequest{
		ObjectMeta: metav1.ObjectMeta{Name: "another"}, Spec: certificatesv1.CertificateSigningRequestSpec{SignerName: "another/signer"},
	}))
	csr := aRequest(t, "me")
	first, second := c.ask(csr), c.ask(csr)
	r := c.told(open)
	want := kube.SigningRequest{
		Name: r.Name, UID: r.UID, Username: "me", Extra: map[string][]string{"on": {"n1"}}, Signer: "a/signer",
		Usages: []string{kube.ClientAuth, kube.DigitalSignature}, Request: csr, Lifetime: time.Hour,
	}
	if diff := cmp.Diff(want, r); diff != "" || !strings.HasPrefix(r.Name, "x-") || r.UID == "" {
		t.Errorf("request (-want +got):\n%s", diff)
	}
	must(t, c.client.Sign(c.ctx, r, []byte("certificate"), "Good", "as it should be"))
	for _, asked := range []<-chan reply{first, second} {
		if a := <-asked; a.err != nil || string(a.certPEM) != "certificate" {
			t.Errorf("got %q, %v", a.certPEM, a.err)
		}
	}
	// It is answered once; what is kept of it is little.
	if err := c.client.Sign(c.ctx, r, []byte("another"), "Good", ""); !errors.Is(err, kube.ErrChanged) {
		t.Errorf("signed again: %v", err)
	}
	done := c.told(finished)
	if diff := cmp.Diff(kube.SigningRequest{Name: r.Name, UID: r.UID, Signer: r.Signer, Finished: true}, done); diff != "" {
		t.Errorf("afterwards (-want +got):\n%s", diff)
	}
	// Somebody who asks with the same key again has the same answer, another key another request.
	if a := <-c.ask(csr); string(a.certPEM) != "certificate" {
		t.Errorf("asked again: %q, %v", a.certPEM, a.err)
	}
}

func TestRequestIsDenied(t *testing.T) {
	c := newCertificates(t)
	asked := c.ask(aRequest(t, "me"))
	r := c.told(open)
	namesake := r
	namesake.UID = "of-another"
	if err := c.client.Deny(c.ctx, namesake, "Bad", "for a reason"); !errors.Is(err, kube.ErrChanged) {
		t.Errorf("denied a namesake: %v", err)
	}
	must(t, c.client.Deny(c.ctx, r, "Bad", "for a reason"))
	if a := <-asked; !errors.Is(a.err, kube.ErrDenied) || !strings.Contains(a.err.Error(), "for a reason") {
		t.Errorf("got %q, %v", a.certPEM, a.err)
	}
	if err := c.client.Sign(c.ctx, r, []byte("certificate"), "Good", ""); !errors.Is(err, kube.ErrChanged) {
		t.Errorf("signed what was denied: %v", err)
	}
}

// TestRequestIsApprovedByOthers: who may sign says who gets a certificate, not who approves.
func TestRequestIsApprovedByOthers(t *testing.T) {
	c := newCertificates(t)
	asked := c.ask(aRequest(t, "me"))
	r := c.told(open)
	o := c.api.Object("certificatesigningrequests", "", r.Name).DeepCopyObject().(*certificatesv1.CertificateSigningRequest)
	o.Status.Conditions = []certificatesv1.CertificateSigningRequestCondition{{Type: certificatesv1.CertificateApproved, Status: "True"}}
	must(t, c.api.Put(o))
	must(t, c.client.Deny(c.ctx, r, "Bad", "for a reason"))
	if a := <-asked; !errors.Is(a.err, kube.ErrDenied) || !strings.Contains(a.err.Error(), "for a reason") {
		t.Errorf("got %q, %v", a.certPEM, a.err)
	}
}

func TestRequestGoes(t *testing.T) {
	c := newCertificates(t)
	asked := c.ask(aRequest(t, "me"))
	r := c.told(open)
	must(t, c.api.Delete(c.api.Object("certificatesigningrequests", "", r.Name)))
	if a := <-asked; !errors.Is(a.err, kube.ErrDenied) || !strings.Contains(a.err.Error(), "taken away unanswered") {
		t.Errorf("got %q, %v", a.certPEM, a.err)
	}
	if err := c.client.Deny(c.ctx, r, "Bad", ""); !errors.Is(err, kube.ErrNotFound) {
		t.Errorf("denied what is gone: %v", err)
	}
}

func TestRequestIsNotAnswered(t *testing.T) {
	c := newCertificates(t)
	ctx, cancel := context.WithCancel(c.ctx)
	csr := aRequest(t, "me")
	ended := make(chan error)
	go func() {
		_, err := c.client.RequestCertificate(ctx, "x-", csr, "a/signer", time.Hour)
		ended <- err
	}()
	r := c.told(open)
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), r.Name+" is not answered") {
		t.Errorf("error %v", err)
	}
	// The same request waits on.
	again := c.ask(csr)
	must(t, c.client.Sign(c.ctx, r, []byte("certificate"), "Good", ""))
	if a := <-again; string(a.certPEM) != "certificate" {
		t.Errorf("got %q, %v", a.certPEM, a.err)
	}
	if _, err := c.client.RequestCertificate(c.ctx, "x-", []byte("nothing"), "a/signer", time.Hour); err == nil {
		t.Error("asked for nothing")
	}
}
