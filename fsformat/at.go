package fsformat

// TransactionAt returns the transaction at a position, such as
// [RecordHeader.TxnPos]. It is the caller's own.
func (r *Reader) TransactionAt(pos int64) (*Transaction, error) {
	s := r.newScanner(pos, 0)
	h, err := s.next()
	if err != nil {
		return nil, err
	}
	if h == nil {
		return nil, r.corrupt(pos, 0, "no transaction begins here")
	}
	t := new(Transaction)
	if err := s.fillIn(t, h); err != nil {
		return nil, err
	}
	return t, nil
}
