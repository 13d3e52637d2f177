package daemon

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"
)

// Notifier delivers notices.
type Notifier interface {
	// Name says what it is in the log; no secret.
	Name() string
	// Notify delivers one, or returns why not. It may be called from several goroutines.
	Notify(ctx context.Context, n *Notice) error
}

const (
	notifyTries   = 3
	notifyTimeout = 20 * time.Second // of a try
	notifyPause   = 5 * time.Second  // after the first try; then twice as long
)

// deliver tries to deliver a notice several times.
func deliver(ctx context.Context, to Notifier, n *Notice) error {
	pause := notifyPause
	for try := 1; ; try++ {
		limited, cancel := context.WithTimeout(ctx, notifyTimeout)
		err := to.Notify(limited, n)
		cancel()
		if err == nil || try == notifyTries || ctx.Err() != nil {
			return err
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return err
		}
		pause *= 2
	}
}

// Webhook delivers notices by POST, as JSON.
type Webhook struct {
	URL    string       // may have a secret: it is neither logged nor in an error
	Client *http.Client // default: one that follows redirects by which the notice arrives
}

// posts lets only those redirects be followed that take the notice along.
func posts(req *http.Request, via []*http.Request) error {
	switch {
	case req.Method != http.MethodPost:
		return errors.New("the webhook answers with a redirect that a notice cannot follow: it has moved, or asks for a login")
	case len(via) >= 10:
		return errors.New("the webhook answers with 10 redirects")
	}
	return nil
}

// Name implements [Notifier].
func (w *Webhook) Name() string { return "webhook" }

// Notify implements [Notifier]. Every answer but 2xx is an error.
func (w *Webhook) Notify(ctx context.Context, n *Notice) error {
	b, err := json.Marshal(n)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, w.URL, bytes.NewReader(b))
	if err != nil {
		return errors.New("the webhook is no URL that can be used")
	}
	req.Header.Set("Content-Type", "application/json")
	client := http.Client{}
	if w.Client != nil {
		client = *w.Client
	}
	client.CheckRedirect = posts
	resp, err := client.Do(req)
	if err != nil {
		if u, ok := errors.AsType[*url.Error](err); ok {
			err = u.Err // without the URL
		}
		return err
	}
	defer resp.Body.Close()
	// The rest of the answer is of no use, but lets the connection be used again.
	_, _ = io.CopyN(io.Discard, resp.Body, 64<<10)
	if resp.StatusCode < 200 || resp.StatusCode > 299 {
		return fmt.Errorf("the webhook answers %s", resp.Status)
	}
	return nil
}
