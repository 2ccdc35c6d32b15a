"""Networks that see whole images: plain torch, trained across pairs."""
