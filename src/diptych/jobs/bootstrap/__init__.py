"""CapFilt: captions cleaned and written anew by trained runs (BLIP, section 3.3)."""
