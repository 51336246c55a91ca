package kube

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/k8s-ovs/k8s-ovs/pkg/pki"
)

const (
	// AgentSigner signs the certificates of nodes.
	AgentSigner = "k8s-ovs.io/agent"
	// AgentLifetime is that of such a certificate.
	AgentLifetime = 24 * time.Hour

	// What it is for, as a CertificateSigningRequest says it.
	ClientAuth       = string(certificatesv1.UsageClientAuth)
	DigitalSignature = string(certificatesv1.UsageDigitalSignature)
)

var (
	// ErrDenied: a certificate is not given, and asking again with the same request
	// is of no use.
	ErrDenied = errors.New("denied")
	// ErrChanged: the object changed since it was seen; look again.
	ErrChanged = errors.New("changed meanwhile")
)

// SigningRequest is a CertificateSigningRequest of the API server.
type SigningRequest struct {
	Name, UID string
	// Username and Extra are who made it, as the API server says: a client cannot
	// choose them.
	Username string
	Extra    map[string][]string
	Signer   string
	Usages   []string
	// Request is PEM; Lifetime what is asked for, 0 where nothing is.
	Request  []byte
	Lifetime time.Duration
	// Finished: it has a certificate, was denied, or failed.
	Finished bool
}

// signingRequest forgets of a finished one all but its name: the cluster keeps them
// for an hour.
func signingRequest(r *certificatesv1.CertificateSigningRequest) (string, SigningRequest) {
	out := SigningRequest{Name: r.Name, UID: string(r.UID), Signer: r.Spec.SignerName}
	if _, err := outcome(r); err != nil || len(r.Status.Certificate) > 0 {
		out.Finished = true
		return r.Name, out
	}
	out.Username, out.Request = r.Spec.Username, r.Spec.Request
	for _, u := range r.Spec.Usages {
		out.Usages = append(out.Usages, string(u))
	}
	if len(r.Spec.Extra) > 0 {
		out.Extra = map[string][]string{}
	}
	for key, values := range r.Spec.Extra {
		out.Extra[key] = values
	}
	if r.Spec.ExpirationSeconds != nil {
		out.Lifetime = time.Duration(*r.Spec.ExpirationSeconds) * time.Second
	}
	return r.Name, out
}

// outcome is the certificate, nil as long as there is none. It is ErrDenied where
// there will be none.
func outcome(r *certificatesv1.CertificateSigningRequest) ([]byte, error) {
	for _, c := range r.Status.Conditions {
		if c.Type != certificatesv1.CertificateApproved && c.Status == corev1.ConditionTrue {
			return nil, fmt.Errorf("CertificateSigningRequest %s: %w: %s", r.Name, ErrDenied, c.Message)
		}
	}
	return r.Status.Certificate, nil
}

// WatchSigningRequests tells of the CertificateSigningRequests for signer, by name:
// all of them when they are first known, and all anew after each batch of changes. The
// newest wins. The channel is closed when ctx ends.
func (c *Client) WatchSigningRequests(ctx context.Context, signer string) <-chan map[string]SigningRequest {
	p := newPicture()
	requests := newTable(p, signingRequest)
	return tellAll(ctx, p, requests, func() {
		match := metav1.ListOptions{FieldSelector: "spec.signerName=" + signer}
		follow(ctx, c, "certificatesigningrequests", c.api.Certificates.CertificateSigningRequests(), &certificatesv1.CertificateSigningRequest{}, match, requests)
	})
}

// Sign approves the request r and gives it its certificate. ErrNotFound, ErrChanged.
func (c *Client) Sign(ctx context.Context, r SigningRequest, certPEM []byte, reason EventReason, message string) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	o, err := c.judge(ctx, r, certificatesv1.CertificateApproved, reason, message)
	if err != nil {
		return err
	}
	o.Status.Certificate = certPEM
	if _, err := c.api.Certificates.CertificateSigningRequests().UpdateStatus(ctx, o, metav1.UpdateOptions{}); err != nil {
		return fmt.Errorf("put the certificate into CertificateSigningRequest %s: %w", r.Name, classify(err))
	}
	return nil
}

// Deny refuses the request r for good. ErrNotFound, ErrChanged.
func (c *Client) Deny(ctx context.Context, r SigningRequest, reason EventReason, message string) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	_, err := c.judge(ctx, r, certificatesv1.CertificateDenied, reason, message)
	return err
}

// judge approves or denies what is still the request r; one that was approved, by us
// before we went away or by a person, stays so.
func (c *Client) judge(ctx context.Context, r SigningRequest, verdict certificatesv1.RequestConditionType, reason EventReason, message string) (*certificatesv1.CertificateSigningRequest, error) {
	api := c.api.Certificates.CertificateSigningRequests()
	o, err := api.Get(ctx, r.Name, metav1.GetOptions{})
	if err != nil {
		return nil, fmt.Errorf("read CertificateSigningRequest %s: %w", r.Name, classify(err))
	}
	if _, now := signingRequest(o); now.UID != r.UID || now.Finished {
		return nil, fmt.Errorf("CertificateSigningRequest %s: %w", r.Name, ErrChanged)
	}
	for _, has := range o.Status.Conditions {
		if has.Type == certificatesv1.CertificateApproved {
			if verdict == certificatesv1.CertificateApproved {
				return o, nil
			}
			// The API server lets nobody deny what was approved: that signing it failed ends it.
			return c.fail(ctx, o, reason, message)
		}
	}
	now := metav1.Now()
	o.Status.Conditions = append(o.Status.Conditions, certificatesv1.CertificateSigningRequestCondition{
		Type: verdict, Status: corev1.ConditionTrue, Reason: string(reason), Message: message, LastUpdateTime: now, LastTransitionTime: now,
	})
	fresh, err := api.UpdateApproval(ctx, r.Name, o, metav1.UpdateOptions{})
	if err != nil {
		return nil, fmt.Errorf("judge CertificateSigningRequest %s: %w", r.Name, classify(err))
	}
	return fresh, nil
}

// fail ends a request that others approved and that we do not sign.
func (c *Client) fail(ctx context.Context, o *certificatesv1.CertificateSigningRequest, reason EventReason, message string) (*certificatesv1.CertificateSigningRequest, error) {
	now := metav1.Now()
	o.Status.Conditions = append(o.Status.Conditions, certificatesv1.CertificateSigningRequestCondition{
		Type: certificatesv1.CertificateFailed, Status: corev1.ConditionTrue, Reason: string(reason), Message: message, LastUpdateTime: now, LastTransitionTime: now,
	})
	fresh, err := c.api.Certificates.CertificateSigningRequests().UpdateStatus(ctx, o, metav1.UpdateOptions{})
	if err != nil {
		return nil, fmt.Errorf("judge CertificateSigningRequest %s: %w", o.Name, classify(err))
	}
	return fresh, nil
}

// RequestCertificate asks signer for a client's certificate and waits for it: PEM. It
// is asked for once for each key: a request that the same key made before, and that is
// not answered yet, is waited for. ErrDenied when it is refused: ask with another key. When ctx ends
// first the error says what was waited for.
func (c *Client) RequestCertificate(ctx context.Context, prefix string, requestPEM []byte, signer string, lifetime time.Duration) ([]byte, error) {
	name, err := requestName(prefix, requestPEM)
	if err != nil {
		return nil, err
	}
	seconds := int32(lifetime / time.Second)
	want := &certificatesv1.CertificateSigningRequest{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: certificatesv1.CertificateSigningRequestSpec{
			Request: requestPEM, SignerName: signer, ExpirationSeconds: &seconds,
			Usages: []certificatesv1.KeyUsage{certificatesv1.UsageClientAuth, certificatesv1.UsageDigitalSignature},
		},
	}
	cctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	o, err := c.api.Certificates.CertificateSigningRequests().Create(cctx, want, metav1.CreateOptions{})
	switch {
	case apierrors.IsAlreadyExists(err):
	case ctx.Err() != nil:
		return nil, unanswered(ctx, name)
	case err != nil:
		return nil, fmt.Errorf("make CertificateSigningRequest %s: %w", name, classify(err))
	default:
		c.log.Info("asked for a certificate", "certificateSigningRequest", o.Name, "signer", signer)
	}
	return c.awaitCertificate(ctx, name)
}

func unanswered(ctx context.Context, name string) error {
	return fmt.Errorf("CertificateSigningRequest %s is not answered: %w", name, ctx.Err())
}

// requestName names a request by its key and its user.
func requestName(prefix string, requestPEM []byte) (string, error) {
	r, err := pki.ParseRequest(requestPEM)
	if err != nil {
		return "", err
	}
	// With the user, who may change while the key is the same.
	sum := sha256.Sum256(slices.Concat(r.RawSubjectPublicKeyInfo, r.RawSubject))
	return prefix + hex.EncodeToString(sum[:8]), nil
}

// awaitCertificate follows one request by its name until it is answered.
func (c *Client) awaitCertificate(ctx context.Context, name string) ([]byte, error) {
	for {
		o, err := c.getSigningRequest(ctx, name)
		switch {
		case ctx.Err() != nil:
			return nil, unanswered(ctx, name)
		case errors.Is(err, ErrNotFound):
			return nil, fmt.Errorf("CertificateSigningRequest %s was taken away unanswered: %w", name, ErrDenied)
		case err != nil:
			c.log.Warn("cannot read the certificate that was asked for; trying again", "error", err)
			o = nil
		default:
			if certPEM, err := outcome(o); err != nil || len(certPEM) > 0 {
				return certPEM, err
			}
		}
		c.awaitChange(ctx, name, o)
	}
}

func (c *Client) getSigningRequest(ctx context.Context, name string) (*certificatesv1.CertificateSigningRequest, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	o, err := c.api.Certificates.CertificateSigningRequests().Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return nil, classify(err)
	}
	return o, nil
}

// awaitChange returns when the request may be another than o, or after a while.
func (c *Client) awaitChange(ctx context.Context, name string, o *certificatesv1.CertificateSigningRequest) {
	ctx, cancel := context.WithTimeout(ctx, requestRetry)
	defer cancel()
	if o != nil {
		match := named(name)
		match.ResourceVersion = o.ResourceVersion
		if w, err := c.api.Certificates.CertificateSigningRequests().Watch(ctx, match); err == nil {
			defer w.Stop()
			select {
			case _, open := <-w.ResultChan():
				if open {
					return
				}
			case <-ctx.Done():
				return
			}
		}
	}
	<-ctx.Done()
}
