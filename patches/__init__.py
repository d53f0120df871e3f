"""SGLang's sources with Speculative Prefill's seams: built from the table of `specprefill_sgl.hooks`, applied, verified."""
