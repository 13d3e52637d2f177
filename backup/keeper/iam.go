package keeper

import (
	"fmt"
)

// Role is a part that hosts have, as far as permissions go.
type Role string

// The roles. A drill is a reader that stores proofs.
const (
	Writer Role = "writer"
	Reader Role = "reader"
	Driver Role = "drill"
	Warden Role = "keeper"
)

// Roles are all of them.
var Roles = []Role{Writer, Warden, Reader, Driver}

// Bucket is the place of a repository in a bucket.
type Bucket struct {
	Name   string
	Prefix string // "" or with a slash at its end
	AWS    bool   // it is one of AWS, which knows a condition for If-None-Match
	Lock   bool   // objects are locked
}

// Access is a policy of access, as AWS and MinIO read it.
type Access struct {
	Version   string      `json:"Version"`
	Statement []Statement `json:"Statement"`
}

// Statement is a statement of an [Access].
type Statement struct {
	Sid       string                         `json:"Sid"`
	Effect    string                         `json:"Effect"`
	Action    []string                       `json:"Action"`
	Resource  []string                       `json:"Resource"`
	Condition map[string]map[string][]string `json:"Condition,omitempty"`
}

// Permissions returns the least that a role needs.
func (b Bucket) Permissions(r Role) (*Access, error) {
	bucket := "arn:aws:s3:::" + b.Name
	objects := bucket + "/" + b.Prefix + "*"
	list := Statement{Sid: "List", Effect: "Allow", Action: []string{"s3:ListBucket"}, Resource: []string{bucket}}
	versions := Statement{Sid: "ListVersions", Effect: "Allow", Action: []string{"s3:ListBucketVersions"}, Resource: []string{bucket}}
	if b.Prefix != "" {
		under := map[string]map[string][]string{"StringLike": {"s3:prefix": {b.Prefix + "*"}}}
		list.Condition, versions.Condition = under, under
	}
	read := Statement{Sid: "Read", Effect: "Allow", Action: []string{"s3:GetObject"}, Resource: []string{objects}}
	put := Statement{Sid: "Create", Effect: "Allow", Action: []string{"s3:PutObject"}, Resource: []string{objects}}
	if b.AWS {
		// What exists cannot be overwritten.
		put.Condition = map[string]map[string][]string{"Null": {"s3:if-none-match": {"false"}}}
	}
	a := &Access{Version: "2012-10-17"}
	switch r {
	case Writer:
		if b.Lock {
			read.Action = append(read.Action, "s3:GetObjectRetention")
			a.Statement = append(a.Statement, Statement{Sid: "Lock", Effect: "Allow", Action: []string{"s3:PutObjectRetention"}, Resource: []string{objects}})
		}
		a.Statement = append([]Statement{list, read, put}, a.Statement...)
	case Warden:
		read.Action = append(read.Action, "s3:GetObjectVersion")
		put.Resource = []string{bucket + "/" + b.Prefix + "d/*", bucket + "/" + b.Prefix + "policy/*"}
		remove := Statement{Sid: "Delete", Effect: "Allow", Action: []string{"s3:DeleteObject", "s3:DeleteObjectVersion"}, Resource: []string{objects}}
		a.Statement = []Statement{list, versions, read, put, remove}
		if b.Lock {
			a.Statement = append(a.Statement, Statement{Sid: "Lock", Effect: "Allow", Action: []string{"s3:GetObjectRetention", "s3:PutObjectRetention"}, Resource: []string{objects}})
		}
	case Reader, Driver:
		read.Action = append(read.Action, "s3:GetObjectVersion")
		a.Statement = []Statement{list, versions, read}
		if r == Driver {
			put.Resource = []string{bucket + "/" + b.Prefix + "*/p/*"}
			a.Statement = append(a.Statement, put)
		}
	default:
		return nil, fmt.Errorf("%q is none of writer, keeper, reader, drill", r)
	}
	return a, nil
}

// Lifecycle is a rule of a bucket, as PutBucketLifecycleConfiguration takes it.
type Lifecycle struct {
	Rules []LifecycleRule `json:"Rules"`
}

// LifecycleRule is a rule of a [Lifecycle].
type LifecycleRule struct {
	ID                             string         `json:"ID"`
	Status                         string         `json:"Status"`
	Filter                         map[string]any `json:"Filter"`
	NoncurrentVersionExpiration    map[string]any `json:"NoncurrentVersionExpiration"`
	Expiration                     map[string]any `json:"Expiration"`
	AbortIncompleteMultipartUpload map[string]any `json:"AbortIncompleteMultipartUpload"`
}

// Lifecycle returns the rule with which a bucket with versions gives up what was deleted, or
// overwritten, days ago. Until then an overwritten object can be brought back.
func (b Bucket) Lifecycle(days int64) *Lifecycle {
	return &Lifecycle{Rules: []LifecycleRule{{
		ID: "neobackup-noncurrent", Status: "Enabled", Filter: map[string]any{"Prefix": b.Prefix},
		NoncurrentVersionExpiration:    map[string]any{"NoncurrentDays": days},
		Expiration:                     map[string]any{"ExpiredObjectDeleteMarker": true},
		AbortIncompleteMultipartUpload: map[string]any{"DaysAfterInitiation": 1},
	}}}
}
