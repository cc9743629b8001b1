"""The machine pagegate runs on: is it ready (`doctor`), and what does its kernel report (`events`)?"""
