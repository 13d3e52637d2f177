package main

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// An import is waited for as long as it makes progress.
func TestWhileProgressing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, progress, stop := whileProgressing(t.Context(), time.Minute)
		defer stop()
		for range 60 {
			time.Sleep(50 * time.Second)
			progress()
		}
		if ctx.Err() != nil {
			t.Fatalf("ended in spite of progress: %v", context.Cause(ctx))
		}
		time.Sleep(61 * time.Second)
		if err := context.Cause(ctx); err == nil || !strings.Contains(err.Error(), "no progress for 1m0s") {
			t.Errorf("without progress: %v", err)
		}
	})
}
