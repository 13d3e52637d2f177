package backup

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"os"
	"strings"
)

// WriterName returns a name for what this process writes into notes: host/pid/nonce, another one at each call.
func WriterName() string {
	host, err := os.Hostname()
	if err != nil || strings.ContainsAny(host, "/ ") {
		host = "unknown"
	}
	nonce := make([]byte, 4)
	rand.Read(nonce)
	return fmt.Sprintf("%s/%d/%s", host, os.Getpid(), hex.EncodeToString(nonce))
}
