// Package storetest is the contract of package store as a suite, [Run], that every
// store and every wrapper passes; [Faulty], a store that injects faults; and the
// S3 servers that tests start as processes of their own ([MinIO], [VersityGW],
// [Moto], [S3rver]).
package storetest
