module ssa.example

go 1.19
