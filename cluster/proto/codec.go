package proto

type decoder struct{}
